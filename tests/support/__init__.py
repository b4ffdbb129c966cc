"""What tests share: fakes, wires in memory, sites and clusters of real processes."""

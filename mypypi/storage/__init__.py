"""Where whole, checked package files are kept. One module per kind of storage; each implements `IStorage`."""

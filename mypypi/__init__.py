"""MyPyPi: a pull-through cache for Python package indexes and npm registries."""

__version__ = "0.1.0"

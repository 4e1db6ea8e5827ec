"""Potstill distils big neural networks into small ones that you can ship."""

from potstill._version import __version__

__all__ = ["__version__"]

"""The version of this program, for files that record what wrote them."""

__version__ = "0.1.0"

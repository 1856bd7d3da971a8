"""RefineDet: an object detector as an executable specification, and its application."""

__version__ = "0.1.0"

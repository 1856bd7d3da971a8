"""Backends: the specification on real devices. They are found through entry points."""

"""Backends: the contract on real devices. They are found through entry points."""

"""Checks that any backend says what the contract says."""

"""Weights of other programs: read without running them, renamed, checked, written."""

"""Weights of other programs: read without running any code, renamed, checked, exported."""

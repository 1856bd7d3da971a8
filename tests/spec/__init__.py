"""Tests of the specification; they need NumPy, pytest and Hypothesis."""

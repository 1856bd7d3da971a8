"""Tests of the contract; they need NumPy, pytest and Hypothesis."""

"""Conformance: whether a backend computes what the specification computes.

A *check* tests one law: a property that holds for every input of its kind. The suite draws
inputs, passes them to the backend and to the specification, and compares the results. Levels
build on each other: a backend reaches a level if it passes all checks of that level and of the
levels before it. A check that was not run, or that the backend does not implement, is not passed.
"""

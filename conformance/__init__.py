"""Conformance: whether a backend says what the specification says.

A *check* is a law that holds for every input of its kind. The suite draws inputs,
hands them to the backend and to the specification, and compares. Levels build on each
other: a backend reaches a level if it passes all checks of that level and of those
before it. What a backend does not implement counts as not passed,
nor does what was not run.
"""

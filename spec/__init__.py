"""The specification: what every number of RefineDet must be, in plain NumPy.

Where the specification and a backend disagree, the backend is wrong.
"""

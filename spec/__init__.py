"""The contract: what every number of RefineDet must be, in plain NumPy.

Where the contract and a backend disagree, the backend is wrong.
"""

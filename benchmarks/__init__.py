"""Measurements behind every figure in docs/results.md; each prints its machine, its n and its spread.

May import everything; imported by nobody.
"""

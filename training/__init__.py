"""RRTF training (arXiv 2307.14936): evolve, clean, sample, judge, rank, fit.

Holds no code yet: the sandbox that judges samples comes first. May import `rrtf_serve`; imported by
`benchmarks`.
"""

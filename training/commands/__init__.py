"""`rrtf-train`'s commands, one module each: flags in, a report out.

May import `training`; imported by `training.cli`.
"""

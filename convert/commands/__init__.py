"""The commands of `rrtf-convert`: one module each, with `add(commands)` that makes its parser.

A module imports nothing slow by itself: `--help` must stay quick, and torch must stay out of the commands
that do not say `needs_torch=True` among their parser's defaults (see convert/cli).
"""

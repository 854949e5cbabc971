"""Programmes that must never be judged passed, and never leave a trace.

The tests they face ask for f(x) == x + 1. A programme that tries to break out answers correctly if, and
only if, it got out: for those, "not passed" means "held". {canary} is a file of the host's that anybody may
read and write, {port} a port on which the host listens, {pid} the judge's process.
"""

from tests.hostile.breakouts import BREAKOUTS
from tests.hostile.exits import EXITS
from tests.hostile.floods import FLOODS
from tests.hostile.forgeries import FORGERIES

PROGRAMMES: dict[str, str] = {**EXITS, **FORGERIES, **FLOODS, **BREAKOUTS}

"""What a quantisation is calibrated on: code by default, never evaluation data.

    corpus = load_corpus("code")                          # the running interpreter's standard library
    windows = corpus.windows(tokenizer, ..., samples=128, length=2048, seed=0)

A corpus is a name and a list of texts; windows are token ids, all of one length, the same for the same corpus,
tokenizer, seed and sizes.
"""

from __future__ import annotations

import hashlib
import json
import random
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rrtf_serve.models.errors import ModelError

Part = Literal["calibration", "held-out"]

# Modules written in Python that Python 3.11 to 3.14 all have as one file. The two lists share no module, and
# no package's modules are spread so that one tests what its neighbour taught: they are whole subjects.
_CALIBRATION = """
argparse ast base64 bdb bisect bz2 calendar cmd code codecs collections/__init__ configparser contextlib copy
csv dataclasses difflib dis doctest email/_header_value_parser email/header email/message enum fileinput
fnmatch fractions ftplib functools gettext gzip hashlib heapq hmac html/parser http/client http/cookiejar
http/cookies http/server imaplib importlib/_bootstrap_external inspect json/decoder json/encoder linecache
locale logging/__init__ logging/config logging/handlers mailbox mimetypes modulefinder multiprocessing/managers
multiprocessing/pool multiprocessing/shared_memory netrc numbers optparse os pdb pickle pkgutil posixpath
pprint pyclbr queue random reprlib runpy sched secrets selectors shelve shutil smtplib socket socketserver
statistics subprocess tarfile tempfile textwrap timeit tokenize trace typing unittest/case unittest/loader
unittest/mock urllib/parse urllib/request uuid weakref wsgiref/handlers xml/dom/minidom xmlrpc/client
""".split()
_HELD_OUT = """
asyncio/base_events asyncio/locks asyncio/queues asyncio/streams asyncio/tasks codeop colorsys
concurrent/futures/process concurrent/futures/thread copyreg filecmp getopt getpass graphlib ipaddress
keyword ntpath operator pickletools plistlib poplib profile pstats quopri shlex ssl stat stringprep symtable
tabnanny threading tomllib/_parser traceback types webbrowser xml/etree/ElementTree zipimport
zoneinfo/_zoneinfo
""".split()


def standard_library_files(part: Part) -> list[Path]:
    """Source files of the running interpreter's standard library, in a fixed order.

    "calibration" is what quantisation may see, "held-out" what parity is measured on; the two share no file.
    Which modules these are is fixed, their text is the interpreter's: compare figures of equal digests only.
    Modules that a distribution leaves out are left out here. Raises ModelError when more than half are
    absent, since such an interpreter has no library of Python files.
    """
    names = _CALIBRATION if part == "calibration" else _HELD_OUT
    folder = Path(sysconfig.get_path("stdlib"))
    found = [path for name in names if (path := folder / f"{name}.py").is_file()]
    if 2 * len(found) < len(names):
        raise ModelError(
            f"{folder}: holds {len(found)} of {len(names)} modules of the standard library as Python files; "
            "use a Python that has them"
        )
    return found

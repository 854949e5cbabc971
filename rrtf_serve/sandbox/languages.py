"""Other languages: how a self-contained programme is run, and how it proves that its end was reached.

Each programme gets an epilogue that prints a nonce, made for this run. It runs only if everything before it,
the tests included, came to its end; exiting early with status 0 does not print it.
"""

from __future__ import annotations

import pwd
import re
import secrets
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rrtf_serve.sandbox.jobs import BadJob

STRIPS_TYPES = (22, 6)  # the first node that runs TypeScript by itself
PARTS = ("lib", "lib64", "libexec", "include")  # of an installation, besides its bin
COMPILE_FAILED = 97  # what the run command exits with where compiling failed


@dataclass(frozen=True)
class Language:
    """`run` is a POSIX shell command; {nonce} in files stands for the proof."""

    programs: tuple[str, ...]  # must be installed
    source: str  # the programme's file name
    run: str
    epilogue: str = ""  # after the programme, in its own language
    prologue: str = ""
    files: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Prepared:
    files: dict[str, str]
    argv: list[str]
    proof: str  # a line of its own in the output
    compile_failed: int = COMPILE_FAILED


_CPP_MAIN = """
#include <cstdio>
extern "C++" int rrtf_programme() __asm__("rrtf_programme");
int main() {
    int status = rrtf_programme();
    std::fflush(stdout);
    if (status == 0) std::puts("\\n{nonce}");
    return status;
}
"""

LANGUAGES: dict[str, Language] = {
    "javascript": Language(
        ("node",), "programme.js", "node programme.js",
        epilogue="\n;console.log('\\n{nonce}');\n",
    ),
    "typescript": Language(
        ("node",), "programme.ts", "node --experimental-strip-types --no-warnings programme.ts",
        epilogue="\n;console.log('\\n{nonce}');\n",
    ),
    "bash": Language(("bash",), "programme.sh", "bash programme.sh", epilogue="\necho\necho {nonce}\n"),
    "cpp": Language(
        ("g++",), "programme.cpp",
        # Not every level lets the linker set a mode; `programme` lies there executable to take its output.
        "g++ -std=c++17 -O1 -w -c programme.cpp end.cpp && g++ -o linked programme.o end.o"
        f" && cat linked > programme || exit {COMPILE_FAILED}; ./programme",
        # The compiler gives `main` its implicit return; the linker knows it by another name.
        prologue='int main() __asm__("rrtf_programme");\n',
        files=(("end.cpp", _CPP_MAIN), ("programme", "")),
    ),
}  # fmt: skip


def available(language: str) -> bool:
    """Whether the programs that the language needs are installed, and new enough."""
    if language not in LANGUAGES or not all(shutil.which(p) for p in LANGUAGES[language].programs):
        return False
    return language != "typescript" or _node_version() >= STRIPS_TYPES


@cache
def _node_version() -> tuple[int, ...]:
    done = subprocess.run(["node", "--version"], capture_output=True, text=True, check=False, timeout=60)
    return tuple(int(part) for part in re.findall(r"\d+", done.stdout)[:2])


def prepare(language: str, source: str, hidden: Path | None = None) -> Prepared:
    """Raises BadJob naming the language, or the program that is missing or lies in the `hidden` folder."""
    if language not in LANGUAGES:
        raise BadJob(f"language {language!r} is not known; known are {', '.join(LANGUAGES)}")
    if not available(language):
        needed = ", ".join(LANGUAGES[language].programs)
        newer = " 22.6 or newer" if language == "typescript" else ""
        raise BadJob(f"language {language!r} needs {needed}{newer}, which is not installed")
    entry = LANGUAGES[language]
    for program in entry.programs:
        place = _place(program)
        if hidden is not None and place is not None and place.is_relative_to(hidden):
            # Another of that name might be found instead.
            raise BadJob(f"{program} is {place}: no run sees the host's {hidden}; put it elsewhere")
    nonce = secrets.token_hex(16)
    prologue = entry.prologue
    if language == "cpp" and not re.search(r"\bint\s++main\s*+\(\s*+(void\s*+)?\)", source):
        prologue = 'int main(int, char**) __asm__("rrtf_programme");\n'
    files = {entry.source: prologue + source + entry.epilogue.replace("{nonce}", nonce)}
    files |= {name: text.replace("{nonce}", nonce) for name, text in entry.files}
    return Prepared(files, ["/bin/sh", "-c", entry.run], nonce)


def _place(program: str) -> Path | None:
    path = shutil.which(program)
    return Path(path).resolve() if path else None


def program_files() -> list[Path]:
    """Interpreters and compilers outside /usr, and the folders beside them that they need; nothing else of
    the place they are installed in, and of a home or what holds one nothing but the programme itself."""
    found: dict[Path, None] = {}
    homes = {Path.home(), *(Path(entry.pw_dir) for entry in pwd.getpwall())}
    for program in sorted({p for language in LANGUAGES.values() for p in language.programs}):
        file = _place(program)
        if file is None or file.is_relative_to("/usr"):
            continue
        found[file] = None
        prefix = file.parent.parent
        if file.parent.name == "bin" and not any(home.is_relative_to(prefix) for home in homes):
            parts = [prefix / name for name in PARTS] + [p for p in prefix.glob("*-linux-*") if p.is_dir()]
            found |= dict.fromkeys(part for part in parts if part.is_dir())
    return list(found)

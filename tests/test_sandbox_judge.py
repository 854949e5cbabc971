"""Honest programmes pass, wrong ones don't, and verdicts say what happened: at each level to be had."""

# ruff: noqa: E501  # a programme reads best on as few lines as it has statements

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from rrtf_serve.sandbox import selftest
from rrtf_serve.sandbox.jobs import (
    Case,
    CaseJob,
    CaseSet,
    FunctionJob,
    Job,
    Oracle,
    ProgramJob,
    StdioCase,
    StdioJob,
)
from rrtf_serve.sandbox.judge import Sandbox
from rrtf_serve.sandbox.languages import available
from rrtf_serve.sandbox.limits import Level, Limits, SandboxUnavailable
from rrtf_serve.sandbox.verdict import Kind, Status

LIMITS = Limits(wall_s=20, cpu_s=10)
LINKED = """
class ListNode:
    def __init__(self, val=0, next=None):
        self.val = val
        self.next = next
class TreeNode:
    def __init__(self, val=0, left=None, right=None):
        self.val = val
        self.left = left
        self.right = right
def linked(values):
    head = None
    for value in reversed(values):
        head = ListNode(value, head)
    return head
def values(head):
    found = []
    while head:
        found.append(head.val)
        head = head.next
    return found
"""


@pytest.fixture(scope="module", params=[Level.BUBBLEWRAP, Level.LANDLOCK], ids=str)
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    try:
        made = Sandbox(request.param, workers=2)
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    with made:
        yield made


HONEST = {
    "plain": ("def f(a, b=1):\n    return a + b\n", "assert f(1) == 2\nassert f(1, b=3) == 4\n"),
    "prints": ("def f():\n    print('hello')\n    return 1\n", "assert f() == 1\n"),
    "sleeps": ("import time\ndef f():\n    time.sleep(0.2)\n    return 1\n", "assert f() == 1\n"),
    "files": (
        "import os, shutil, tempfile\ndef f():\n    with tempfile.TemporaryDirectory() as d:\n"
        "        open(d + '/a', 'w').write('x')\n        shutil.copy2(d + '/a', d + '/b')\n"
        "        os.rename(d + '/b', d + '/c')\n        return open(d + '/c').read()\n",
        "assert f() == 'x'\n",
    ),
    "threads": (
        "from concurrent.futures import ThreadPoolExecutor\ndef f():\n    with ThreadPoolExecutor(4) as p:\n"
        "        return list(p.map(abs, [-1, -2]))\n",
        "assert f() == [1, 2]\n",
    ),
    "asyncio": (
        "import asyncio\nasync def g():\n    await asyncio.sleep(0.01)\n    return 1\ndef f():\n    return asyncio.run(g())\n",
        "assert f() == 1\n",
    ),
    "library": (
        "import bz2, csv, ctypes, decimal, email, hashlib, lzma, sqlite3, ssl, unittest, uuid, xml.dom.minidom, zlib\n"
        "def f():\n    return sqlite3.connect(':memory:').execute('select 1').fetchone()\n",
        "assert f() == (1,)\n",
    ),
    "in_place": (
        "def f(a):\n    a.append(3)\n    a[0].add(9)\n    return a\n",
        "x = [{1}, 2]\ny = x[0]\nz = f(x)\nassert x == [{1, 9}, 2, 3]\nassert y is x[0]\nassert z is x\n",
    ),
    "generator": (
        "def f():\n    n = 0\n    while True:\n        yield n\n        n += 1\n",
        "import itertools\nassert list(itertools.islice(f(), 3)) == [0, 1, 2]\nassert next(f()) == 0\n",
    ),
    "closure": ("def f(n):\n    return lambda x: x + n\n", "assert f(3)(4) == 7\nassert callable(f(1))\n"),
    "callback": (
        "def f(g, xs):\n    return sorted(map(g, xs))\n",
        "assert f(lambda x: -x, [1, 2]) == [-2, -1]\nassert f(abs, iter([-3])) == [3]\n",
    ),
    "own_class": (
        "class Pair:\n    def __init__(self, a, b):\n        self.a, self.b = a, b\n    def total(self):\n"
        "        return self.a + self.b\n    def __len__(self):\n        return 2\n    def __getitem__(self, i):\n"
        "        return (self.a, self.b)[i]\ndef f(pairs):\n    return max(p.b for p in pairs)\n",
        "assert f([Pair(1, 2), Pair(3, 4)]) == 4\np = Pair(1, 2)\nassert p.total() == 3\np.a = 7\nassert p.a == 7\n"
        "assert isinstance(p, Pair) and len(p) == 2 and p[1] == 2 and list(p) == [7, 2]\nassert p == p and p != Pair(7, 2)\n",
    ),
    "exceptions": (
        "class Bad(ValueError):\n    pass\ndef f(x):\n    raise Bad('bad', x)\n",
        "try:\n    f(3)\n    caught = None\nexcept ValueError as error:\n    caught = error\n"
        "assert type(caught).__name__ == 'Bad'\nassert caught.args == ('bad', 3)\n",
    ),
    "special_values": (
        "import decimal, fractions, datetime\ndef f():\n    return [float('nan'), float('inf'), 10 ** 5000, '\\ud800', b'x', 1j,\n"
        "        {(1, 2): {3}}, frozenset([1]), range(3), None, decimal.Decimal('1.5'), datetime.date(2000, 1, 1)]\n",
        "import datetime, decimal, math\nr = f()\nassert math.isnan(r[0]) and r[1] == math.inf and r[2] == 10 ** 5000\n"
        "assert r[3:9] == ['\\ud800', b'x', 1j, {(1, 2): {3}}, frozenset([1]), range(3)]\n"
        "assert r[9:] == [None, decimal.Decimal('1.5'), datetime.date(2000, 1, 1)]\n",
    ),
    "dataclass": (
        "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\ndef f(n):\n    return P(n)\n",
        "assert f(3).x == 3\nassert str(f(3)) == 'P(x=3)'\n",
    ),
    "exit_is_there": ("def f():\n    return callable(exit) and callable(quit)\n", "assert f()\n"),
    "not_main": (
        "ran = False\nif __name__ == '__main__':\n    ran = True\ndef f():\n    return ran\n",
        "assert f() is False\n",
    ),
}


@pytest.mark.parametrize("name", HONEST)
def test_honest_programmes_pass(sandbox: Sandbox, name: str) -> None:
    code, tests = HONEST[name]
    verdict = sandbox.judge(FunctionJob(code, "f", tests), LIMITS)
    assert verdict.passed, verdict
    assert verdict.level is sandbox.level
    assert verdict.tests and verdict.seconds > 0 and verdict.peak_memory_bytes > 1 << 20
    json.dumps(verdict.record())


def test_check_function_with_linked_lists_and_trees(sandbox: Sandbox) -> None:
    code = LINKED + (
        "class Solution:\n    def flip(self, head):\n        before = None\n        while head:\n"
        "            head.next, before, head = before, head, head.next\n        return before\n"
        "    def depth(self, t):\n        return 1 + max(self.depth(t.left), self.depth(t.right)) if t else 0\n"
    )
    check = (
        "def check(candidate):\n    assert values(candidate(linked([1, 2, 3]))) == [3, 2, 1]\n"
        "    assert candidate(None) is None\n    head = linked([1, 2])\n    candidate(head)\n"
        "    assert head.next is None\n    assert values(candidate(linked(list(range(3000)))))[0] == 2999\n"
    )
    verdict = sandbox.judge(FunctionJob(code, "Solution().flip", check, LINKED), LIMITS)
    assert verdict.passed and len(verdict.tests) == 4, verdict
    tree = "def check(candidate):\n    assert candidate(TreeNode(1, TreeNode(2), None)) == 2\n"
    assert sandbox.judge(FunctionJob(code, "Solution().depth", tree, LINKED), LIMITS).passed


def test_the_prelude_stands_against_the_candidate(sandbox: Sandbox) -> None:
    """HumanEval/32 tests with a function that the completion could redefine."""
    prelude = "def poly(xs, x):\n    return sum(c * x ** i for i, c in enumerate(xs))\n"
    cheat = "def poly(xs, x):\n    return 0\ndef f(xs):\n    return 5\n"
    tests = "def check(candidate):\n    assert abs(poly([1, 2], candidate([1, 2]))) < 1e-4\n"
    assert not sandbox.judge(FunctionJob(cheat, "f", tests, prelude), LIMITS).passed
    assert sandbox.judge(
        FunctionJob(prelude + "def f(xs):\n    return -0.5\n", "f", tests, prelude), LIMITS
    ).passed


def test_names_taken_from_the_candidate_can_not_replace_others(sandbox: Sandbox) -> None:
    cheat = (
        "import sys\nclass Pair:\n    pass\ndef f(x):\n    return 0\n"
        "served = sys.modules['rrtf_serve.sandbox.inside.candidate']._Served\n"
        "served.perform = lambda self, op, t, a, k: {'Pair': 1, 'abs': None, 'candidate': None, 'len': 3,\n"
        "    '__rrtf_tests__': None, 'f': 2} if op == 'names' else 0\n"
    )
    tests = "assert Pair == 1\nassert abs(f(1)) == 2\nassert len([1]) == 1\n"
    verdict = sandbox.judge(FunctionJob(cheat, "f", tests), LIMITS)
    assert [test.passed for test in verdict.tests] == [True, False, True], verdict


def test_statuses(sandbox: Sandbox) -> None:
    def judged(code: str, tests: str = "assert f(1) == 1\nassert f(2) == 4\n") -> Status:
        return sandbox.judge(FunctionJob(code, "f", tests), LIMITS).status

    assert judged("def f(x):\n    return x * x\n") is Status.ALL_PASS
    assert judged("def f(x):\n    return x\n") is Status.PARTIAL
    assert judged("def f(x):\n    if x > 1:\n        raise KeyError\n    return x\n") is Status.PARTIAL
    assert judged("def f(x):\n    return 7\n") is Status.RUNTIME_ERROR
    assert judged("def f(x:\n") is Status.COMPILE_ERROR
    assert judged("x" * (5 << 20)) is Status.COMPILE_ERROR
    assert Status.COMPILE_ERROR < Status.RUNTIME_ERROR < Status.PARTIAL < Status.ALL_PASS


def test_what_was_passed_before_a_time_out_is_told(sandbox: Sandbox) -> None:
    code = "def f(x):\n    while x > 1:\n        pass\n    return x\n"
    verdict = sandbox.judge(
        FunctionJob(code, "f", "assert f(1) == 1\nassert f(2) == 2\n"), Limits(wall_s=2, cpu_s=20)
    )
    assert (verdict.status, verdict.kind) == (Status.RUNTIME_ERROR, Kind.TIMEOUT)
    assert [test.passed for test in verdict.tests[:2]] == [True, False]


def test_processor_time_is_limited_apart(sandbox: Sandbox) -> None:
    verdict = sandbox.judge(
        FunctionJob("def f():\n    while True:\n        pass\n", "f", "assert f()\n"),
        Limits(wall_s=60, cpu_s=1),
    )
    assert verdict.kind is Kind.TIMEOUT
    assert "processor" in verdict.message


def test_cases(sandbox: Sandbox) -> None:
    cases = CaseSet(tuple(Case(([n, n + 1],), 2 * n + 1) for n in range(20)))
    assert sandbox.judge(CaseJob("def f(x):\n    return sum(x)\n", "f", cases), LIMITS).passed
    verdict = sandbox.judge(
        CaseJob("def f(x):\n    return float(sum(x)) if x[0] else 1\n", "f", cases), LIMITS
    )
    assert verdict.status is Status.PARTIAL
    assert sum(test.passed for test in verdict.tests) == 1
    assert "got 3.0, expected 3" in verdict.message
    generator = CaseSet((Case((3,), [0, 1, 2]),))
    assert sandbox.judge(CaseJob("def f(n):\n    yield from range(n)\n", "f", generator), LIMITS).passed


def test_cases_by_reference(sandbox: Sandbox) -> None:
    inputs = tuple(Case((n,)) for n in range(5))
    cases = CaseSet(inputs, Oracle("close"), "def f(x):\n    return x / 3\n")
    assert sandbox.judge(CaseJob("def f(x):\n    return x * (1 / 3)\n", "f", cases), LIMITS).passed
    assert not sandbox.judge(CaseJob("def f(x):\n    return x\n", "f", cases), LIMITS).passed
    broken = CaseSet(inputs, Oracle(), "def f(x):\n    raise ValueError('no')\n")
    verdict = sandbox.judge(CaseJob("def f(x):\n    return x\n", "f", broken), LIMITS)
    assert verdict.status is Status.INFRA_ERROR
    assert "reference" in verdict.message
    with pytest.raises(ValueError, match="not plain data"):
        sandbox.judge(CaseJob("", "f", CaseSet((Case((object(),)),))), LIMITS)


def test_whole_programmes(sandbox: Sandbox) -> None:
    program = "import sys\nn = int(input())\nprint(sum(map(int, sys.stdin.read().split())))\n"
    good, bad = StdioCase("2\n3 4\n", "7\n"), StdioCase("2\n3 5\n", "7\n")
    assert sandbox.judge(StdioJob(program, (good, good)), LIMITS).passed
    verdict = sandbox.judge(StdioJob(program, (good, bad)), LIMITS)
    assert verdict.status is Status.PARTIAL
    assert [test.passed for test in verdict.tests] == [True, False]
    stopped = sandbox.judge(StdioJob(program, (bad, good, good), stop_early=True), LIMITS)
    assert len(stopped.tests) == 1 and stopped.status is Status.RUNTIME_ERROR
    assert sandbox.judge(StdioJob("print(1)\nexit()\nprint(2)\n", (StdioCase("", "1"),)), LIMITS).passed
    for early in ("import sys\nprint(7)\nsys.exit(1)\n", "print(7)\nraise ValueError\n"):
        assert sandbox.judge(StdioJob(early, (good,)), LIMITS).status is Status.RUNTIME_ERROR
    assert sandbox.judge(StdioJob("print(7", (good,)), LIMITS).status is Status.COMPILE_ERROR
    main = "def main():\n    print(7)\nif __name__ == '__main__':\n    main()\n"
    assert sandbox.judge(StdioJob(main, (good,)), LIMITS).passed


ENDINGS = {
    "exit_function": (
        "import atexit, io, sys\nbuffer = io.StringIO()\nsys.stdout = buffer\n"
        "atexit.register(lambda: sys.__stdout__.write(buffer.getvalue()))\nprint(7)\n"
    ),
    "thread": (
        "import threading, time\ndef main():\n    time.sleep(0.1)\n    print(int(input()) + 3)\n"
        "threading.stack_size(1 << 27)\nthreading.Thread(target=main).start()\n"
    ),
    "own_writer": "out = open(1, 'w', closefd=False)\nout.write('7')\n",
    "destructor": "class A:\n    def __del__(self):\n        print(7)\na = A()\n",
    "device": "print(int(open('/dev/stdin').read()) + 3)\n",
    "fileinput": "import fileinput\nfor line in fileinput.input():\n    print(int(line) + 3)\n",
    "arguments": "import os, sys\nassert len(sys.argv) == len(sys.orig_argv) == 1 and os.path.basename(__file__)\nprint(7)\n",
    "stack": (
        "import resource, sys, threading\nresource.setrlimit(resource.RLIMIT_STACK, (1 << 28, resource.RLIM_INFINITY))\n"
        "sys.setrecursionlimit(10 ** 6)\nf = lambda n: n and 1 + f(n - 1)\nprint(f(20000) - 19993)\n"
    ),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_programmes_find_and_end_what_python_itself_would(sandbox: Sandbox, name: str) -> None:
    verdict = sandbox.judge(StdioJob(ENDINGS[name], (StdioCase("4\n", "7\n"),)), LIMITS)
    assert verdict.passed, verdict


def test_a_programme_that_never_ends_after_its_end_is_timed_out(sandbox: Sandbox) -> None:
    for endless in (
        "import atexit, time\natexit.register(lambda: time.sleep(60))\nprint(7)\n",
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\nprint(7)\n",
    ):
        verdict = sandbox.judge(StdioJob(endless, (StdioCase("", "7\n"),)), Limits(wall_s=1))
        assert verdict.kind is Kind.TIMEOUT, verdict


PROGRAMMES = {
    "javascript": "const assert = require('node:assert');\nfunction f(x) { return x + 1; }\nassert.deepEqual(f(1), 2);\n",
    "typescript": "function f(x: number): number { return x + 1; }\nif (f(1) !== 2) throw new Error('no');\n",
    "bash": "f() { echo $(($1 + 1)); }\nmapfile -t a < <(f 1)\n[[ ${a[0]} == 2 ]] || exit 1\n",
    "cpp": "#include <cassert>\nint f(int x) { return x + 1; }\nint main() { auto g = f; assert(g(1) == 2); }\n",
}
LEAVES_EARLY = {
    "javascript": "process.exit(0);\n",
    "typescript": "process.exit(0);\n",
    "bash": "exit 0\n",
    "cpp": "#include <cstdlib>\nint main() { std::exit(0); }\n",
}


@pytest.mark.parametrize("language", PROGRAMMES)
def test_other_languages(sandbox: Sandbox, language: str) -> None:
    if not available(language):
        with pytest.raises(ValueError, match=language):
            sandbox.judge(ProgramJob(language, ""), LIMITS)
        pytest.skip(f"no {language} here")
    source = PROGRAMMES[language]
    verdict = sandbox.judge(ProgramJob(language, source), LIMITS)
    assert verdict.passed, verdict
    wrong = sandbox.judge(
        ProgramJob(language, source.replace("x + 1", "x + 2").replace("$1 + 1", "$1 + 2")), LIMITS
    )
    assert wrong.status is Status.RUNTIME_ERROR
    assert sandbox.judge(ProgramJob(language, LEAVES_EARLY[language]), LIMITS).status is Status.RUNTIME_ERROR


BOMBS = {
    "processes": ("bash", "b() { b | b & }; b\nsleep 30\n", (Kind.TIMEOUT, Kind.KILLED, None)),
    "daemon": ("bash", "(setsid sleep 3600 &) \nnohup sleep 3600 >/dev/null 2>&1 &\nexit 1\n", (None,)),
    "memory": ("bash", "a=x\nwhile true; do a=$a$a; done\n", (Kind.MEMORY, Kind.TIMEOUT, None)),
    "output": ("bash", "yes\n", (Kind.OUTPUT,)),
    "disk": (
        "bash",
        "i=0; while head -c 1000000 /dev/zero > $((i++)); do :; done; exit 1\n",
        (Kind.KILLED, Kind.TIMEOUT, None),
    ),
    "everybody": ("bash", "kill -9 -1\nsleep 30\n", (Kind.TIMEOUT, Kind.KILLED, None)),
    "secrets": ("bash", "cat /etc/shadow $HOME/.ssh/* && exit 0; exit 1\n", (None,)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_in_other_languages(sandbox: Sandbox, name: str) -> None:
    language, source, kinds = BOMBS[name]
    limits = Limits(wall_s=3, memory_bytes=256 << 20, processes=32, file_bytes=16 << 20)
    verdict = sandbox.judge(ProgramJob(language, source), limits)
    assert verdict.status is Status.RUNTIME_ERROR
    assert verdict.kind in kinds, verdict
    assert sandbox.judge(ProgramJob("bash", PROGRAMMES["bash"]), LIMITS).passed
    left = [
        p
        for p in Path("/proc").iterdir()
        if p.name.isdigit() and _command(p).startswith(("sleep\0003600", "yes\0"))
    ]
    assert not left


def _command(process: Path) -> str:
    try:
        return (process / "cmdline").read_text("utf-8", "replace")
    except OSError:
        return ""


def test_many_in_order_and_without_growth(sandbox: Sandbox) -> None:
    def jobs(count: int) -> Iterator[Job]:
        for number in range(count):
            read.append(number)
            yield FunctionJob(
                f"def f():\n    return {number}\n", "f", f"assert f() == {number - number % 3}\n"
            )

    read: list[int] = []
    verdicts = sandbox.judge_many(jobs(60), LIMITS)
    first = next(verdicts)
    assert len(read) <= 4 * sandbox.workers
    assert [v.passed for v in (first, *verdicts)] == [n % 3 == 0 for n in range(60)]
    tracemalloc.start()
    list(sandbox.judge_many(jobs(20), LIMITS))
    before = tracemalloc.get_traced_memory()[0]
    list(sandbox.judge_many(jobs(60), LIMITS))
    assert tracemalloc.get_traced_memory()[0] - before < 200_000
    tracemalloc.stop()


def test_a_dead_cell_is_replaced(sandbox: Sandbox) -> None:
    """What the sandbox itself loses is tried again, and never the candidate's fault."""
    with Sandbox(sandbox.level, workers=1) as other:
        job = FunctionJob("def f():\n    return 1\n", "f", "assert f() == 1\n")
        assert other.judge(job, LIMITS).passed
        for child in _newest_children(os.getpid()):
            os.kill(child, signal.SIGKILL)
        assert other.judge(job, LIMITS).passed


def _newest_children(parent: int) -> list[int]:
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                fields = (path / "stat").read_text(errors="replace").rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == parent:
                found.append(int(path.name))
    return sorted(found)[-2:]


def test_a_killed_judge_leaves_nothing(sandbox: Sandbox) -> None:
    script = (
        "import os, sys\nfrom rrtf_serve.sandbox.judge import Sandbox\nfrom rrtf_serve.sandbox.jobs import FunctionJob\n"
        "from rrtf_serve.sandbox.limits import Level, Limits\n"
        f"s = Sandbox(Level({sandbox.level.value!r}), workers=1)\n"
        "ok = FunctionJob('def f():\\n    return 1\\n', 'f', 'assert f() == 1\\n')\n"
        "assert s.judge(ok).passed\nprint('ready', flush=True)\n"
        "s.judge(FunctionJob('import time\\ntime.sleep(7654)\\n', 'f', 'assert f()'), Limits(wall_s=1000))\n"
    )
    judge = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=Path(__file__).parent.parent
    )
    assert judge.stdout is not None
    assert judge.stdout.readline() == b"ready\n"
    time.sleep(0.5)
    judge.kill()
    judge.wait()
    judge.stdout.close()
    until = time.monotonic() + 10
    while _sandboxed_by(judge.pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert not _sandboxed_by(judge.pid)


def _sandboxed_by(pid: int) -> list[str]:
    """Groups of that judge's still in use, and sandboxed interpreters that nobody owns any more."""
    orphans = [
        p.name
        for p in Path("/proc").iterdir()
        if p.name.isdigit() and "rrtf_serve.sandbox.inside.zygote" in _command(p)
    ]
    return [p for p in orphans if _parent(int(p)) in (1, pid)]


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except OSError:
        return -1


def test_levels_are_chosen_and_fail_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RRTF_SANDBOX", "granite")
    with pytest.raises(ValueError, match="granite"):
        Sandbox()
    monkeypatch.setenv("RRTF_SANDBOX", "rlimits")
    with Sandbox(workers=1) as weak:
        assert weak.level is Level.RLIMITS
        assert (
            weak.judge(FunctionJob("def f():\n    return 1\n", "f", "assert f() == 1\n"), LIMITS).level
            is Level.RLIMITS
        )
    monkeypatch.delenv("RRTF_SANDBOX")
    monkeypatch.setenv("PATH", "/nowhere")
    selftest._try.cache_clear()
    try:
        with pytest.raises(SandboxUnavailable, match="apt install bubblewrap"):
            Sandbox(Level.BUBBLEWRAP)
        monkeypatch.setattr("rrtf_serve.sandbox.selftest.ON_OFFER", (Level.BUBBLEWRAP,))
        with pytest.raises(SandboxUnavailable, match="RRTF_SANDBOX=rlimits"):
            Sandbox()
    finally:
        selftest._try.cache_clear()


def test_a_closed_sandbox_says_so(sandbox: Sandbox) -> None:
    other = Sandbox(sandbox.level, workers=1)
    other.close()
    other.close()
    with pytest.raises(ValueError, match="closed"):
        other.judge(FunctionJob("", "f", ""))


def test_limits_and_workers_are_checked() -> None:
    with pytest.raises(ValueError, match="wall_s"):
        Limits(wall_s=0)
    with pytest.raises(ValueError, match="workers"):
        Sandbox(workers=0)


def test_site_packages_can_be_imported(sandbox: Sandbox, tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    folder = Path(numpy.__file__).parent.parent
    code = (
        "import numpy as np\ndef f(x):\n    return np.array(x).sum()\ndef g(x):\n    return np.array(x) * 2\n"
    )
    with Sandbox(sandbox.level, workers=1, site_packages=(folder,)) as other:
        assert other.judge(FunctionJob(code, "f", "assert f([1, 2]) == 3\n"), LIMITS).passed
        verdict = other.judge(FunctionJob(code, "g", "assert list(g([1, 2])) == [2, 4]\n"), LIMITS)
        assert verdict.passed, verdict

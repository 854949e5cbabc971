"""What goes wrong in the sandbox itself costs no candidate its verdict, and no other job anything at all."""

# ruff: noqa: E501  # a programme reads best on as few lines as it has statements

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rrtf_serve.sandbox import private
from rrtf_serve.sandbox.jobs import BadJob, FunctionJob, ProgramJob, StdioCase, StdioJob
from rrtf_serve.sandbox.judge import ATTEMPTS, Sandbox
from rrtf_serve.sandbox.languages import available, prepare
from rrtf_serve.sandbox.limits import Level, Limits, SandboxUnavailable
from rrtf_serve.sandbox.verdict import Kind, Status, Verdict

LIMITS = Limits(wall_s=20, cpu_s=10)
SLOW = FunctionJob("import time\ndef f():\n    time.sleep(0.3)\n    return 1\n", "f", "assert f() == 1\n")
QUICK = FunctionJob("def f():\n    return 1\n", "f", "assert f() == 1\n")


@pytest.fixture(scope="module", params=[Level.BUBBLEWRAP, Level.LANDLOCK], ids=str)
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    try:
        made = Sandbox(request.param, workers=1)
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    with made:
        assert made.judge(QUICK, LIMITS).passed
        yield made


def _descriptors() -> set[int]:
    return {int(path.name) for path in Path("/proc/self/fd").iterdir() if path.exists()}


@pytest.mark.parametrize("job", [SLOW, StdioJob("import time\ntime.sleep(0.3)\nprint(1)\n", (StdioCase("", "1"),))],
                         ids=["function", "programme"])  # fmt: skip
def test_a_descriptor_lost_in_mid_run_is_no_fault_of_the_candidates(
    sandbox: Sandbox, job: FunctionJob | StdioJob
) -> None:
    """As when another part of the process closes a number twice: each of the run's own in turn."""
    position = 0
    while True:
        assert sandbox.judge(QUICK, LIMITS).passed
        before = _descriptors()
        found: list[Verdict] = []
        run = threading.Thread(target=lambda: found.append(sandbox.judge(job, LIMITS)))  # noqa: B023  # joined below
        run.start()
        time.sleep(0.15)  # the candidate sleeps by now
        opened = sorted(_descriptors() - before)
        if position < len(opened):
            os.close(opened[position])
        run.join()
        assert found[0].passed, (position, found)
        position += 1
        if position > len(opened):
            break
    assert position > 4
    assert _descriptors() == before


class Torn(str):
    """Raises what nobody expects, and counts how often."""

    seen = 0

    def __len__(self) -> int:
        Torn.seen += 1
        raise KeyError(7)


def test_a_fault_of_the_judge_is_told_and_kills_no_other_job(
    sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    Torn.seen = 0
    torn = FunctionJob(Torn("def f(): return 1"), "f", "assert f() == 1")
    verdicts = list(sandbox.judge_many([QUICK, torn, QUICK], LIMITS))
    assert [verdict.status for verdict in verdicts] == [Status.ALL_PASS, Status.INFRA_ERROR, Status.ALL_PASS]
    assert verdicts[1].message == "KeyError: 7"
    assert Torn.seen == ATTEMPTS
    assert any(record.exc_info and record.exc_info[0] is KeyError for record in caplog.records)


def test_jobs_that_can_not_be_run_are_refused(sandbox: Sandbox) -> None:
    with pytest.raises(BadJob, match="standard input"):
        sandbox.judge(StdioJob("", (StdioCase("\ud83d", ""),)), LIMITS)
    with pytest.raises(BadJob, match="cobol"):
        sandbox.judge(ProgramJob("cobol", ""), LIMITS)
    echo = "import sys\nsys.stdout.buffer.write(sys.stdin.buffer.read().hex().encode())\n"
    assert sandbox.judge(StdioJob(echo, (StdioCase("a\udcff", "61ff"),)), LIMITS).passed


BREAKS_PROTOCOL = {
    "value": "import struct, socket\nsocket.socket(1, 1, 0, 3).sendall(struct.pack('!BI', 6, 1 << 31) + b'x' * 100000)\n",
    "type": "import struct, os\nos.write(3, struct.pack('!BI', 99, 0))\n",
    "turn": "import struct, os\nos.write(3, struct.pack('!BI', 6, 2) + b'[]')\n",
    "closes": "import os\nos.close(3)\n",
}


@pytest.mark.parametrize(
    "then", ["", "os._exit(0)\n", "while True: os.write(1, b'x' * 65536)\n", "time.sleep(3)\n"]
)
@pytest.mark.parametrize("how", BREAKS_PROTOCOL)
def test_a_channel_is_closed_once_however_it_ends(sandbox: Sandbox, how: str, then: str) -> None:
    """Breaking the protocol, hanging up, dying and printing too much may all come at once."""
    code = f"import os, time\ndef f():\n    pass\n{BREAKS_PROTOCOL[how]}{then}"
    verdict = sandbox.judge(
        FunctionJob(code, "f", "assert f()\n"), Limits(wall_s=2, cpu_s=2, output_bytes=1 << 16)
    )
    assert verdict.status is Status.RUNTIME_ERROR, verdict
    assert sandbox.judge(QUICK, LIMITS).passed


@pytest.mark.parametrize("wall", [1.0, 1.02, 0.95])
def test_two_limits_that_strike_together_mean_the_same(sandbox: Sandbox, wall: float) -> None:
    """Which of the two is named is chance; that it is a time-out is not."""
    endless = FunctionJob("def f():\n    while True:\n        pass\n", "f", "assert f()\n")
    verdict = sandbox.judge(endless, Limits(wall_s=wall, cpu_s=1))
    assert (verdict.status, verdict.kind) == (Status.RUNTIME_ERROR, Kind.TIMEOUT), verdict
    assert [test.passed for test in verdict.tests] == [False] * len(verdict.tests)


@pytest.mark.parametrize("number", [9, 11, 34, 40, 64])
def test_dying_of_any_signal_is_the_candidates_own_fault(sandbox: Sandbox, number: int) -> None:
    code = f"import os\nos.kill(os.getpid(), {number})\nos.abort()\n"
    for job in (FunctionJob(code, "f", "assert f()\n"), StdioJob(code, (StdioCase("", ""),))):
        verdict = sandbox.judge(job, LIMITS)
        assert (verdict.status, verdict.kind) == (Status.RUNTIME_ERROR, Kind.KILLED), verdict


def test_who_sleeps_is_not_taken_for_held_up(sandbox: Sandbox) -> None:
    """Or each would be repeated with no other beside it."""
    sleeper = FunctionJob("import time\ndef f():\n    time.sleep(60)\n", "f", "assert f()\n")
    began = time.monotonic()
    assert sandbox.judge(sleeper, Limits(wall_s=2)).kind is Kind.TIMEOUT
    assert time.monotonic() - began < 3.5


def test_a_slow_job_holds_up_no_other(sandbox: Sandbox) -> None:
    with Sandbox(sandbox.level, workers=2) as two:
        assert two.judge(QUICK, LIMITS).passed
        slow = FunctionJob(SLOW.candidate_code.replace("0.3", "3"), "f", SLOW.test_code)
        order = [position for position, _ in two.judge_as_completed([slow, *[QUICK] * 30], LIMITS)]
        assert sorted(order) == list(range(31))
        assert order[-1] == 0
        assert [v.passed for v in two.judge_many([SLOW, QUICK, QUICK], LIMITS)] == [True] * 3


def test_folders_of_killed_judges_are_removed_and_those_in_use_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    used = private.make(None)
    left = private.make(None)
    (left.path / "inner").mkdir()
    os.close(left.lock)  # as the kernel does when its judge is killed
    (tmp_path / "rrtf-cell-other").symlink_to(tmp_path)
    private.sweep(range(0))
    assert used.path.is_dir()
    assert not left.path.exists()
    used.remove()
    assert [path.name for path in tmp_path.iterdir()] == ["rrtf-cell-other"]


@pytest.mark.parametrize("method", ["judge_many", "judge_as_completed"])
def test_runs_end_with_the_call_that_asked_for_them(sandbox: Sandbox, method: str) -> None:
    sleeper = FunctionJob("import time\ndef f():\n    time.sleep(60)\n", "f", "assert f()\n")
    with Sandbox(sandbox.level, workers=2) as two:
        assert two.judge(QUICK, LIMITS).passed
        verdicts = getattr(two, method)([QUICK, *[sleeper] * 20], Limits(wall_s=60))
        next(verdicts)
        time.sleep(0.3)
        began = time.monotonic()
        verdicts.close()
        assert time.monotonic() - began < 5
        assert two.judge(QUICK, LIMITS).passed


def test_ctrl_c_ends_a_judge_at_once(sandbox: Sandbox) -> None:
    script = (
        "from rrtf_serve.sandbox.judge import Sandbox\nfrom rrtf_serve.sandbox.jobs import FunctionJob\n"
        "from rrtf_serve.sandbox.limits import Level, Limits\n"
        "sleeper = FunctionJob('import time\\ntime.sleep(99)\\n', 'f', 'f()')\n"
        "quick = FunctionJob('def f(): return 1', 'f', 'assert f() == 1')\n"
        f"with Sandbox(Level({sandbox.level.value!r}), workers=2) as s:\n"
        "    for verdict in s.judge_many([quick, *[sleeper] * 9], Limits(wall_s=99)):\n"
        "        print('ready', flush=True)\n"
    )
    judge = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parent.parent,
    )
    assert judge.stdout is not None and judge.stdout.readline() == b"ready\n"
    time.sleep(0.3)
    began = time.monotonic()
    judge.send_signal(signal.SIGINT)
    _, errors = judge.communicate(timeout=60)
    assert time.monotonic() - began < 10
    assert errors.strip().endswith(b"KeyboardInterrupt")


def test_a_case_that_breaks_a_limit_is_the_last_to_run(sandbox: Sandbox) -> None:
    cases = (StdioCase("off", "1"), *[StdioCase("on", "1")] * 50)
    began = time.monotonic()
    verdict = sandbox.judge(
        StdioJob("if input() == 'on':\n    while True: pass\nprint(1)\n", cases), Limits(wall_s=1)
    )
    assert time.monotonic() - began < 15
    assert (verdict.status, verdict.kind, len(verdict.tests)) == (Status.RUNTIME_ERROR, Kind.TIMEOUT, 51)
    assert [test.kind for test in verdict.tests[:3]] == ["", "timeout", "not reached"]


def test_many_slow_cases_have_a_limit_together(sandbox: Sandbox) -> None:
    slow = StdioJob("import time\ntime.sleep(0.2)\nprint(1)\n", (StdioCase("", "1"),) * 60)
    limits = Limits(wall_s=0.3)
    verdict = sandbox.judge(slow, limits)
    assert (verdict.status, verdict.kind) == (Status.RUNTIME_ERROR, Kind.TIMEOUT), verdict
    assert verdict.seconds < 25
    assert verdict.tests[-1].kind == "not reached"
    assert len(verdict.tests) == 60


def test_a_sandbox_that_is_closed_leaves_nobody_waiting() -> None:
    sandbox = Sandbox(workers=1)
    errors: list[str] = []

    def judge() -> None:
        try:
            sandbox.judge(SLOW, LIMITS)
        except ValueError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=judge) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    sandbox.close()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
    assert errors
    assert set(errors) == {"the sandbox is closed"}


@pytest.mark.parametrize("kind", [3, 4])
def test_what_the_judge_reads_is_short(sandbox: Sandbox, kind: int) -> None:
    """JSON takes many times its own size to be read: a long one costs the judge neither memory nor time."""
    code = (
        "import os, struct\nbody = b'[0,0,[' + b'[],' * 10_000_000 + b'0]]'\n"
        f"raw = struct.pack('!BI', {kind}, len(body)) + body\nwhile raw:\n    raw = raw[os.write(3, raw):]\n"
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    verdict = sandbox.judge(FunctionJob(code, "f", "assert f()\n"), Limits(value_bytes=256 << 20))
    assert (verdict.status, verdict.kind) == (Status.RUNTIME_ERROR, Kind.KILLED), verdict
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000
    assert time.monotonic() - began < 5


def test_what_hostile_tests_report_is_short(sandbox: Sandbox) -> None:
    tests = (
        "import gc, struct\nwhile True:\n    for o in gc.get_objects():\n"
        "        if type(o).__name__ == 'Channel':\n            body = b'[' + b'[],' * 10_000_000 + b'0]'\n"
        "            o._socket.sendall(struct.pack('!BI', 9, len(body)) + body)\n"
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    verdict = sandbox.judge(FunctionJob("def f(): pass\n", "f", tests), Limits(value_bytes=256 << 20))
    assert (verdict.status, verdict.kind) == (Status.RUNTIME_ERROR, Kind.KILLED), verdict
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000


@pytest.mark.skipif(not available("cpp"), reason="no C++ compiler here")
def test_preparing_a_programme_takes_no_time_on_the_host() -> None:
    began = time.monotonic()
    prepare("cpp", "int main(" + " " * 2_000_000)
    assert time.monotonic() - began < 2

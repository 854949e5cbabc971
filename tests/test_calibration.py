"""What a quantisation is calibrated on: which text, cut how, and what is refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from tiny_models import write_tokenizer

from convert import calibration
from convert.calibration import Corpus, cut, load_corpus, standard_library_files
from rrtf_serve.models.tokens import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer.load(folder)


def test_calibration_and_held_out_share_nothing() -> None:
    calibrating, held_out = standard_library_files("calibration"), standard_library_files("held-out")
    assert len(calibrating) > 60 and len(held_out) > 25
    assert len(set(calibrating)) == len(calibrating)
    assert not set(calibrating) & set(held_out)
    assert not {path.read_bytes() for path in calibrating} & {path.read_bytes() for path in held_out}
    assert all(path.suffix == ".py" for path in calibrating + held_out)


def test_code_is_the_calibration_part() -> None:
    corpus = load_corpus("code")
    assert list(corpus.documents) == [
        path.read_text("utf-8") for path in standard_library_files("calibration")
    ]
    assert corpus.digest == load_corpus("code").digest
    assert len(corpus.digest) == 64


def test_text_is_prose() -> None:
    text = "\n".join(load_corpus("text").documents)
    assert len(text) > 100_000
    assert ">>>" not in text and "::=" not in text
    assert not any(line.startswith((" ", "\t")) for line in text.splitlines())


def _corpus(*documents: str) -> Corpus:
    return Corpus("file", "a test", documents)


def test_windows_have_one_length_and_come_from_the_seed(tokenizer: Tokenizer) -> None:
    corpus = _corpus(*(chr(97 + index % 26) * 100 for index in range(40)))
    first = cut(corpus, tokenizer, samples=10, length=32, seed=1, first="<s>", end="</s>")
    again = cut(corpus, tokenizer, samples=10, length=32, seed=1, first="<s>", end="</s>")
    other = cut(corpus, tokenizer, samples=10, length=32, seed=2, first="<s>", end="</s>")
    assert first == again and first.ids != other.ids
    assert {len(row) for row in first.ids} == {32}
    assert {row[0] for row in first.ids} == {1}  # <s> begins every window
    assert len(set(first.ids)) == 10
    assert first.record["tokens_sha256"] != other.record["tokens_sha256"]
    assert first.record["corpus_sha256"] == other.record["corpus_sha256"]


def test_rests_of_short_documents_are_joined_with_the_end_token_between(tokenizer: Tokenizer) -> None:
    corpus = _corpus("a" * 5, "a" * 5, "a" * 5, "a" * 5)
    (row,) = cut(corpus, tokenizer, samples=1, length=24, seed=0, end="</s>").ids
    a = tokenizer.encode("a", specials=False)[0]
    assert list(row) == ([a] * 5 + [2]) * 4


def test_too_little_text_names_the_flags(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"gives 3 samples of 32 tokens, 4 were asked for; lower --samples"):
        cut(_corpus("a" * 100), tokenizer, samples=4, length=32, seed=0)
    with pytest.raises(ValueError, match="--seqlen 1"):
        cut(_corpus("a" * 100), tokenizer, samples=4, length=1, seed=0)


def test_files(tmp_path: Path) -> None:
    plain = tmp_path / "code.txt"
    plain.write_text("x = 1\n", "utf-8")
    assert load_corpus(str(plain)).documents == ("x = 1\n",)
    records = [{"text": "a"}, {"content": "b"}, {"code": "c"}, {"completion": "d", "task_id": "Mbpp/601"}]
    lines = "\n".join(json.dumps(record) for record in records) + "\n\n"
    for path, data in (
        (tmp_path / "some.jsonl", lines.encode()),
        (tmp_path / "some.jsonl.gz", gzip.compress(lines.encode())),
    ):
        path.write_bytes(data)
        assert load_corpus(str(path)).documents == ("a", "b", "c", "d")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"prompt": "x"}', r"bad.jsonl:1: has none of the fields text, content, code, completion"),
        ('{"text": "x"}\n{"text": 3}', r"bad.jsonl:2: has none"),
        ("[1]", r"bad.jsonl:1: not a JSON object"),
        ("", "holds no text"),
        ('{"task_id": "HumanEval/3", "completion": "x"}', "HumanEval/3 is evaluation data"),
        ('{"task_id": "Mbpp/11", "code": "x"}', "Mbpp/11 is evaluation data"),
        ('{"task_id": "Mbpp/600", "code": "x"}', "Mbpp/600 is evaluation data"),
        ('{"task_id": "MbppEval/11", "code": "x"}', "MbppEval/11 is evaluation data"),
        (
            '{"task_id": 11, "text": "a task", "code": "x", "test_list": ["a"]}',
            "MBPP's problem 11 is evaluation",
        ),
        (
            '{"task_id": 11, "prompt": "a task", "code": "x", "test": ["a"]}',
            "MBPP's problem 11 is evaluation",
        ),
        (
            '{"task_id": "SingleLineInfilling/HumanEval/0/L0", "completion": "x"}',
            "HumanEval/0/L0 is evaluation",
        ),
        ('{"name": "HumanEval_0_has_close_elements", "text": "x"}', "HumanEval_0_has_close_elements is"),
        ('{"name": "mbpp_11_remove_Occ", "text": "x"}', "mbpp_11_remove_Occ is evaluation data"),
        ('{"task_id": "two-sum", "completion": "x", "meta": {"question_id": 1}}', "two-sum .* is evaluation"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(content, "utf-8")
    with pytest.raises(ValueError, match=reason):
        load_corpus(str(path))


def test_a_file_of_json_as_a_whole_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sanitized.json").write_text('[{"task_id": 11, "code": "x"}]', "utf-8")
    with pytest.raises(ValueError, match="JSON as a whole; write one object per line"):
        load_corpus(str(tmp_path / "sanitized.json"))


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "image.txt").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ValueError, match="not UTF-8 text"):
        load_corpus(str(tmp_path / "image.txt"))
    with pytest.raises(ValueError, match="no such file; other choices are code, text, leetcode-train"):
        load_corpus(str(tmp_path / "absent.txt"))


@pytest.mark.parametrize(
    "suite",
    ["humaneval", "humaneval-plus", "mbpp", "mbpp-test", "leetcode-test", "mbpp-plus", "codecontests"],
)
def test_evaluation_suites_are_refused(suite: str) -> None:
    with pytest.raises(ValueError, match=f"{suite}: is an evaluation suite"):
        load_corpus(suite)


def test_a_training_suite_goes_without_the_problems_of_evaluation_suites(tmp_path: Path) -> None:
    """MBPP+ has tasks of MBPP's training split; here task 602 is one."""
    folder = tmp_path / "mbpp"
    folder.mkdir()
    tasks = [
        {"task_id": number, "text": f"Task {number}.", "code": f"def f{number}(): return 1",
         "test_list": [f"assert f{number}() == 1"]}
        for number in (11, 601, 602)
    ]  # fmt: skip
    (folder / "mbpp.jsonl").write_text("\n".join(json.dumps(task) for task in tasks), "utf-8")
    with pytest.raises(ValueError, match="shares problems with mbpp-plus, which must be left out"):
        load_corpus("mbpp-train", tmp_path)
    plus = {
        "task_id": "Mbpp/602", "prompt": '"""Task."""', "entry_point": "f602", "code": "",
        "canonical_solution": "def f602(): return 1", "base_input": [[]], "plus_input": [], "atol": 0,
        "contract": "", "assertion": "assert f602() == 1", "test_list": [],
    }  # fmt: skip
    (tmp_path / "mbpp-plus").mkdir()
    with gzip.open(tmp_path / "mbpp-plus" / "MbppPlus.jsonl.gz", "wt") as file:
        file.write(json.dumps(plus))
    corpus = load_corpus("mbpp-train", tmp_path)
    assert len(corpus.documents) == 1
    assert "Task 601." in corpus.documents[0] and "def f601()" in corpus.documents[0]


def test_an_interpreter_without_its_library_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(calibration.ModelError, match=r"holds 0 of \d+ modules"):
        standard_library_files("held-out")

"""LeetCodeDataset v0.2.0 (arXiv 2504.14655): `class Solution` problems with generated tests.

`leetcode-test` is the data set's own test file. `leetcode-after-2022-07` stands in for the 300 problems of
PanGu-Coder2 (arXiv 2307.14936, section 4.1.1: free problems created after 1 July 2022, id 2325 and up), whose
list was not published. It is chosen by `question_id`, which is LeetCode's internal number ("Decode the
Message", public id 2325, has 2406): 316 problems, 83 easy, 164 medium, 69 hard. Tests are the data set's
generated ones; the paper used the public ones.

`leetcode-fit` and `leetcode-dev` are for training and for its choices: the training file without those 316.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from rrtf_serve.problems.origins import DataFile, Record, load_records
from rrtf_serve.problems.problem import FunctionTests, Problem, Suite, make_suite

AFTER_2022_07 = range(2405, 2894)
# Numbers inside that range whose public ids (above 2790) came after the paper.
LATER = {2811, 2832, 2856, 2871, 2876, 2877, 2879, 2886}

_HOME = "https://github.com/newfacade/LeetCodeDataset"


def _data(split: str) -> DataFile:
    return DataFile(name=f"LeetCodeDataset-v0.2.0-{split}.jsonl.gz", folder="leetcode-dataset", home=_HOME)


def load_leetcode(folder: Path | None, split: str) -> Suite:
    """`split` is "train" or "test". Raises ValueError as `origins.load_records` does."""
    records = load_records(_data(split), folder)
    return make_suite(f"leetcode-{split}", [solution_problem(record) for record in records])


def load_leetcode_after_2022_07(folder: Path | None) -> Suite:
    """Problems of both files with an internal number in AFTER_2022_07, less LATER."""
    records = [record for split in ("train", "test") for record in load_records(_data(split), folder)]
    numbers = set(AFTER_2022_07) - LATER
    chosen = [record for record in records if record["meta"]["question_id"] in numbers]
    return make_suite("leetcode-after-2022-07", [solution_problem(record) for record in chosen])


def load_leetcode_before_2022_07(folder: Path | None, *, held_out: bool) -> Suite:
    """Problems of the training file that are not in `leetcode-after-2022-07`: those to train on, or the
    sixteenth that is kept from training to choose by. Which is which follows from a problem's name alone."""
    later = load_leetcode_after_2022_07(folder).problems
    records = [record for record in load_records(_data("train"), folder) if record["task_id"] not in later]
    chosen = [record for record in records if _held_out(record["task_id"]) is held_out]
    name = "leetcode-dev" if held_out else "leetcode-fit"
    return make_suite(name, [solution_problem(record) for record in chosen])


def _held_out(task_id: str) -> bool:
    return hashlib.sha256(task_id.encode("utf-8")).digest()[0] < 16


def solution_problem(record: Record) -> Problem:
    starter = re.search(r"```python\n(.*?)```", record["query"], re.DOTALL)
    words = record["query"].partition("Please complete the following python code precisely")[0]
    difficulty = record["meta"]["difficulty"]
    return Problem(
        task_id=record["task_id"],
        prompt=record["prompt"],
        entry_point=record["entry_point"],
        # The prompt defines ListNode and TreeNode with the builders that the tests call.
        tests=FunctionTests(record["test"], record["prompt"]),
        task=words.replace("\u00a0", " ").strip(),
        signature=starter.group(1) if starter else "",
        reference=record["completion"],
        stop=("\nclass", "\nif __name__", "\nprint"),
        # 21 records of the test file spell it so.
        labels={"difficulty": "Medium" if difficulty == "Meidum" else difficulty},
    )

"""CoderEval (arXiv 2302.00288): prompts from 43 Python and 10 Java projects. Prompts only.

Its tests live in a container image of its authors with the projects installed; they are in no file that can
be loaded here, and neither are reference solutions. A CoderEval suite can be sampled, not judged.
"""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

from rrtf_serve.problems.origins import DataFile, Record, locate
from rrtf_serve.problems.problem import Problem, Suite, make_suite

ARCHIVE = DataFile(
    name="CoderEval-Input4Models.zip", folder="codereval", home="https://github.com/CoderEval/CoderEval"
)
MEMBERS = {
    "codereval-python": "CEPythonRaw.jsonl",
    "codereval-python-human": "CEPythonHumanLabel.jsonl",
    "codereval-java": "CEJavaRaw.jsonl",
    "codereval-java-human": "CEJavaHumanLabel.jsonl",
}


def load_codereval(name: str, folder: Path | None) -> Suite:
    """`name` is a key of MEMBERS. Raises ValueError naming the archive and what it lacks."""
    [path] = locate(ARCHIVE, folder)
    language = name.split("-")[1]
    try:
        with zipfile.ZipFile(path) as archive:
            lines = archive.read(f"CoderEval-Input4Models/{MEMBERS[name]}").decode("utf-8").splitlines()
        records = [json.loads(line) for line in lines if line.strip()]
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise ValueError(f"{path}: not CoderEval's archive of prompts ({error})") from error
    return make_suite(name, [_problem(record, language) for record in records])


def _problem(record: Record, language: str) -> Problem:
    # The call is the last name before a bracket: "def f(x):", "public static String[] f(String[] array){".
    name = re.search(r"(\w+)\s*\(", record["signature"])
    return Problem(
        task_id=f"CoderEval/{record['question_id']}",
        prompt=record["input"],
        entry_point=name.group(1) if name else "",
        task=record["docstring"],
        signature=record["signature"],
        language=language,
    )

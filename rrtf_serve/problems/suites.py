"""Suites by name, and files of the user's own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from rrtf_serve.problems.codecontests import load_codecontests
from rrtf_serve.problems.codereval import MEMBERS, load_codereval
from rrtf_serve.problems.evalplus import load_humaneval_plus, load_mbpp_plus
from rrtf_serve.problems.humaneval import load_humaneval
from rrtf_serve.problems.infilling import FILES, load_infilling
from rrtf_serve.problems.leetcode import (
    load_leetcode,
    load_leetcode_after_2022_07,
    load_leetcode_before_2022_07,
)
from rrtf_serve.problems.mbpp import SPLITS, load_mbpp
from rrtf_serve.problems.multipl_e import LANGUAGES, load_multipl_e
from rrtf_serve.problems.origins import data_folder
from rrtf_serve.problems.problem import Suite
from rrtf_serve.problems.stubs import STUB_SPLITS, load_mbpp_stubs
from rrtf_serve.problems.user_file import load_user_file

SUITES: dict[str, Callable[[Path | None], Suite]] = {
    "humaneval": load_humaneval,
    "humaneval-plus": load_humaneval_plus,
    "mbpp": load_mbpp,
    **{f"mbpp-{split}": partial(load_mbpp, split=split) for split in SPLITS},
    "mbpp-sanitized": partial(load_mbpp, sanitized=True),
    **{f"mbpp-sanitized-{split}": partial(load_mbpp, sanitized=True, split=split) for split in SPLITS},
    **{f"mbpp-stubs-{split}": partial(load_mbpp_stubs, split=split) for split in STUB_SPLITS},
    "mbpp-plus": load_mbpp_plus,
    "leetcode-test": partial(load_leetcode, split="test"),
    "leetcode-train": partial(load_leetcode, split="train"),
    "leetcode-fit": partial(load_leetcode_before_2022_07, held_out=False),
    "leetcode-dev": partial(load_leetcode_before_2022_07, held_out=True),
    "leetcode-after-2022-07": load_leetcode_after_2022_07,
    **{name: partial(load_infilling, name) for name in FILES},
    "codecontests": load_codecontests,
    **{f"multipl-e-{extension}": partial(load_multipl_e, extension) for extension in LANGUAGES},
    **{name: partial(load_codereval, name) for name in MEMBERS},
}


def load_suite(name: str, data_dir: Path | None = None) -> Suite:
    """A suite by name, or the problems of a file by its path.

    `data_dir` defaults to RRTF_DATA_DIR. Raises ValueError naming the flag, the file or the record.
    """
    loader = SUITES.get(name)
    if loader is not None:
        return loader(data_folder(data_dir))
    if Path(name).is_file():
        return load_user_file(Path(name))
    raise ValueError(f"{name}: neither a file nor a suite; suites are {', '.join(SUITES)}")

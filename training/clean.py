"""`clean`: problems or tasks in, those that may be trained on out; each rejection with its rule and reason.

Rules, in the order in which they are asked; the first that holds rejects:

licence        the record names none, or one that is not allowed
no-task        there are no words that say what to write
too-long       the words or the code are longer than any prompt should be
broken-code    the reference solution is no Python
duplicate      an earlier record has the same words
near-duplicate an earlier record has nearly the same words
contaminated:* the record is, or nearly is, a benchmark's problem (`training.contamination`)
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rrtf_serve.problems.origins import Record
from rrtf_serve.problems.syntax import parses
from training.contamination import BENCHMARKS, Detector, Match, Thresholds, deciding, load_benchmarks
from training.contamination_report import markdown, summary
from training.near_duplicates import NearIndex
from training.passages import Passage, problem_passage, statements, task_words
from training.passages import passage as passage_of
from training.problem_files import as_problem, is_problem, read_records, write_lines, write_text

# Two of LeetCode's problems read so.
_NOTHING_SAID = re.compile(r"description is not available", re.IGNORECASE)

ENDINGS = (".rejected.jsonl", ".report.json", ".report.md")  # of what is written beside the output

Rejection = tuple[str, str, str]  # rule, reason, offending text


@dataclass(frozen=True)
class CleanOptions:
    """What `clean` can be told. Raises ValueError naming the flag."""

    against: tuple[str, ...] = BENCHMARKS
    allow_missing: bool = False  # go on without benchmarks that can't be loaded
    licence: str = ""  # given to records that name none
    allow_licences: tuple[str, ...] = ()  # empty: any that is named
    deny_licences: tuple[str, ...] = ()
    near_within: float = 0.9  # Jaccard from which two records of the input are one
    least_words: int = 3
    most_words: int = 1500
    thresholds: Thresholds = field(default_factory=Thresholds)

    def __post_init__(self) -> None:
        if not 0 < self.near_within <= 1:
            raise ValueError(f"--near-within must be above 0 and at most 1, not {self.near_within}")
        if not 1 <= self.least_words <= self.most_words:
            raise ValueError(
                f"--least-words {self.least_words}: must be from 1 to --most-words, {self.most_words}"
            )
        both = {*map(_plain, self.allow_licences)} & {*map(_plain, self.deny_licences)}
        if both:
            raise ValueError(f"--deny-licence {', '.join(sorted(both))}: is allowed by --allow-licence too")


def clean(
    sources: Sequence[str],
    output: Path,
    options: CleanOptions | None = None,
    data_dir: Path | None = None,
    *,
    progress: bool = True,
) -> dict[str, Any]:
    """Write `output` and, beside it, .rejected.jsonl, .report.json and .report.md; returns the report.

    `sources` are files or suites. Each file is complete or not there, `output` only where something is kept.
    Raises ValueError on bad input, on problems and tasks in one call, where nothing is kept, and on a
    benchmark that can't be loaded unless `allow_missing`.
    """
    options = options or CleanOptions()
    _check_output(sources, output)
    records = _gather(sources, data_dir)
    benchmarks = load_benchmarks(options.against, data_dir)
    if benchmarks.missing and not options.allow_missing:
        reasons = "; ".join(f"{name} ({reason})" for name, reason in benchmarks.missing.items())
        raise ValueError(
            f"these benchmarks can't be loaded, so nothing says whether the data holds them: {reasons}. "
            "Get them, choose others with --against, or give --allow-missing"
        )
    detector = Detector(benchmarks.entries, options.thresholds)
    rules = RecordRules(options)
    kept: list[Record] = []
    rejected: list[Record] = []
    found: list[tuple[Record, Passage, list[Match]]] = []
    bar = tqdm(records, desc="cleaning", unit="record", file=sys.stderr, disable=not progress)
    for record in bar:
        problem = as_problem(record)
        passage = problem_passage(problem)
        rejection = rules.first_broken(record, passage)
        if rejection is None:
            matches = detector.matches(passage)
            for text in statements(problem):  # a task's words may hide others that the model would be shown
                if text != passage.text:
                    matches += detector.matches(passage_of(text))
            if matches:
                found.append((record, passage, matches))
                rejection = _contaminated(matches)
        if rejection is None:
            kept.append(record)
            rules.remember(record, passage)
        else:
            rule, reason, text = rejection
            rejected.append(
                {"task_id": record["task_id"], "rule": rule, "reason": reason, "text": text, "record": record}
            )
    report = {
        "sources": list(sources),
        "records": len(records),
        "kept": len(kept),
        "rejected": dict(Counter(each["rule"].partition(":")[0] for each in rejected)),
        "licences": dict(Counter(record["licence"] for record in kept)),
        "options": asdict(options),
        "contamination": summary(benchmarks, found),
    }
    write_lines(beside(output, ".rejected.jsonl"), rejected)
    write_text(beside(output, ".report.json"), to_json(report))
    write_text(beside(output, ".report.md"), markdown(report))
    if not kept:
        raise ValueError(
            f"all {len(records)} records were rejected ({report['rejected']}); "
            f"{beside(output, '.rejected.jsonl')} says why"
        )
    write_lines(output, kept)
    return report


def beside(output: Path, ending: str) -> Path:
    """data/x.jsonl -> data/x.rejected.jsonl."""
    return output.with_name(output.name.removesuffix(".jsonl") + ending)


def _check_output(sources: Sequence[str], output: Path) -> None:
    """Raises ValueError where what is read would be written over, and on a name that promises gzip."""
    if output.suffix == ".gz":
        raise ValueError(f"-o {output}: lines are written as they are; name a file without .gz")
    written = {each.resolve() for each in (output, *(beside(output, ending) for ending in ENDINGS))}
    for source in sources:
        if Path(source).resolve() in written:
            raise ValueError(f"-o {output}: {source} would be written over; name another file")


def _gather(sources: Sequence[str], data_dir: Path | None) -> list[Record]:
    """Raises ValueError on a task_id that comes twice, and on problems beside tasks."""
    records: list[Record] = []
    origin: dict[str, str] = {}
    for source in sources:
        for record in read_records(source, data_dir):
            name = record["task_id"]
            if name in origin:
                raise ValueError(f"{source}: task_id {name!r} stands in {origin[name]} already")
            origin[name] = source
            records.append(record)
    if len({is_problem(record) for record in records}) > 1:
        raise ValueError(
            f"{', '.join(sources)}: problems (with tests) and tasks (without) don't go into one file; "
            "clean them one after the other"
        )
    return records


class RecordRules:
    """The rules that look at a record by itself and beside those kept before it."""

    def __init__(self, options: CleanOptions) -> None:
        self._options = options
        self._seen: dict[tuple[str, ...], str] = {}
        self._near = NearIndex(options.near_within)

    def first_broken(self, record: Record, passage: Passage) -> Rejection | None:
        """Gives a record without a licence the one of the options, in place."""
        if not record.get("licence") and self._options.licence:
            record["licence"] = self._options.licence
        return self._licence(record) or self._size(passage) or self._repeats(passage)

    def remember(self, record: Record, passage: Passage) -> None:
        """A record that was kept: later ones must differ from it."""
        self._seen[passage.words] = record["task_id"]
        self._near.add(record["task_id"], passage.words)

    def _licence(self, record: Record) -> Rejection | None:
        licence = record.get("licence") or ""
        allowed, denied = self._options.allow_licences, self._options.deny_licences
        if not licence:
            return "licence", "the record has no licence; --licence NAME gives one to all that lack it", ""
        if allowed and _plain(licence) not in map(_plain, allowed):
            return "licence", f"not among the allowed licences {', '.join(allowed)}", licence
        if _plain(licence) in map(_plain, denied):
            return "licence", "denied", licence
        return None

    def _size(self, passage: Passage) -> Rejection | None:
        least, most = self._options.least_words, self._options.most_words
        words = len(passage.text.split())
        if words < least or not task_words(passage.text):
            return "no-task", f"{words} words, at least {least} are needed", passage.text
        if _NOTHING_SAID.search(passage.text):
            return "no-task", "a placeholder stands where the task should be", passage.text
        if words > most or len(passage.source.split()) > most:
            return (
                "too-long",
                f"{words} words and {len(passage.source.split())} of code, at most {most}",
                passage.text,
            )
        if passage.source and not parses(passage.source):
            return "broken-code", "the reference solution is no Python", passage.source
        return None

    def _repeats(self, passage: Passage) -> Rejection | None:
        before = self._seen.get(passage.words)
        if before is not None:
            return "duplicate", f"the same words as {before}", passage.text
        near = self._near.nearest(passage.words)
        if near is not None:
            return "near-duplicate", f"{near[1]:.2f} like {near[0]}", passage.text
        return None


def _plain(licence: str) -> str:
    """SPDX's names hold in any case (SPDX 2.3, annex D)."""
    return licence.strip().casefold()


def _contaminated(matches: list[Match]) -> Rejection:
    first = deciding(matches)
    suite, task_id = first.entry.names[0]
    passage = first.entry.passage
    text = passage.source if "code" in first.rule else passage.text
    return f"contaminated:{first.rule}", f"{first.likeness:.2f} like {task_id} of {suite}", text


def to_json(report: dict[str, Any]) -> str:
    return json.dumps(report, indent=2) + "\n"

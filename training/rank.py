"""From judged answers to tuples: the stage `rank` (arXiv 2307.14936, section 3).

Four levels, from low to high: does not compile, raises or passes nothing, passes part of the tests, passes
all. At one level a teacher's answer ranks above a student's. Problems whose best teacher is below the best
student are dropped. What the paper leaves open is an option of `RankOptions`.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from math import isfinite
from pathlib import Path
from random import Random
from typing import Any

from rrtf_serve.problems.prompts import Prompt, render
from rrtf_serve.sandbox.verdict import Status
from training.answers import DUPLICATE, SourceCounts, read_answers
from training.judge import judged_path, read_dropped
from training.problem_sets import ProblemSet
from training.records import Candidate, Pair, Tuple, write_tuples
from training.sample import SampleFile, read_index, sample_path, write_json

LEVELS = (Status.COMPILE_ERROR, Status.RUNTIME_ERROR, Status.PARTIAL, Status.ALL_PASS)
TEACHER_PICKS = ("random", "shortest", "first")
REJECTED_PICKS = ("random", "worst", "nearest")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RankOptions:
    """How answers are ranked and which pairs are kept. Raises ValueError naming the flag."""

    level_scores: tuple[float, ...] = (0.0, 1 / 3, 2 / 3, 1.0)
    partial_share: bool = False  # a partial pass scores by its share of the tests, up towards ALL_PASS
    tie_gap: float = 0.05  # weight of a pair at one level, the teacher's first; 0: such pairs are not kept
    pairs_per_prompt: int = 1  # the paper's "a pair"
    teacher_answers: int = 1  # different chosen-side answers that those pairs are made of
    teacher_pick: str = "random"  # among the best answers of one score
    rejected_pick: str = "random"  # among those ranked below; those of the same level come last in any case
    chosen_from: str = "teacher"  # or "student" (without teachers), or "all"
    rejected_from: str = "student"  # or "all": teachers' lower answers too
    chosen_status: str = "ALL_PASS"  # the least that a chosen answer must reach
    drop_below_student: bool = True  # problems whose best teacher is below the best student
    sources: tuple[str, ...] = ()  # only these; (): all
    seed: int = 0

    def __post_init__(self) -> None:
        scores = self.level_scores
        if len(scores) != 4 or not all(map(isfinite, scores)) or list(scores) != sorted(scores):
            raise ValueError(f"--level-scores {scores}: must be four numbers, none below the one before it")
        if not scores[0] < scores[-1]:
            raise ValueError(f"--level-scores {scores}: all equal, so nothing ranks above anything")
        if not (isfinite(self.tie_gap) and self.tie_gap >= 0):
            raise ValueError(f"--tie-gap must be 0 or more, not {self.tie_gap}")
        for name in ("pairs_per_prompt", "teacher_answers"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}")
        known = {
            "teacher_pick": TEACHER_PICKS,
            "rejected_pick": REJECTED_PICKS,
            "chosen_from": ("teacher", "student", "all"),
            "rejected_from": ("student", "all"),
            "chosen_status": tuple(level.name for level in LEVELS),
        }
        for name, words in known.items():
            if getattr(self, name) not in words:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} {getattr(self, name)}: must be one of {', '.join(words)}")


def rank(
    folder: Path, options: RankOptions, out: Path | None = None, data_dir: Path | None = None
) -> dict[str, Any]:
    """Write `out` (default: RUN/tuples.jsonl) and its statistics beside it (OUT.stats.json); the statistics.

    The same samples, verdicts and options give the same file. Raises ValueError where nothing is judged, a
    named source is not there, or no problem gives a tuple.
    """
    index = read_index(folder)
    problem_set = index.load(data_dir)
    files = _chosen_files(index.files, options, folder)
    dropped = read_dropped(folder)
    prompts = {
        task: render(problem, index.format)
        for task, problem in problem_set.problems.items()
        if task not in dropped
    }
    pool = _Pool(problem_set, prompts, {task: [] for task in prompts})
    for each in files:
        found = pool.counts.setdefault(each.source, SourceCounts(each.role))
        path = judged_path(folder, each.stem)
        for task, answer in read_answers(path, each.source, problem_set.problems, prompts, found):
            pool.answers[task].append(replace(answer, score=score_of(answer, options)))
    if dropped:
        pool.reasons["its reference solution fails here"] = sorted(dropped)
    tuples = list(_tuples(pool, options))
    report = _report(tuples, pool, options)
    out = out or folder / "tuples.jsonl"
    report["tuples_file"] = str(out)
    write_json(out.with_name(f"{out.stem}.stats.json"), report)
    if not tuples:
        why = ", ".join(f"{len(tasks)}: {reason}" for reason, tasks in pool.reasons.items())
        raise ValueError(
            f"{folder}: none of {len(problem_set.problems)} problems gives a tuple ({why}). Sample more "
            "answers (k, temperatures), add a stronger teacher or a source of kind reference, take easier "
            "problems, or lower --chosen-status"
        )
    for warning in report["warnings"]:
        log.warning("%s", warning)
    write_tuples(out, tuples)
    return report


def score_of(answer: Candidate, options: RankOptions) -> float:
    """The level's score; with `partial_share` a partial pass stands between its own level's and ALL_PASS'."""
    level = Status[answer.status]
    score = float(options.level_scores[LEVELS.index(level)])
    if level is Status.PARTIAL and options.partial_share and answer.tests:
        score += (options.level_scores[-1] - score) * answer.passed / answer.tests
    return score


def weight_of(above: Candidate, below: Candidate, options: RankOptions) -> float:
    """r_tea - r_stu of the pair, or 0 where `above` does not rank above `below`."""
    gap = above.score - below.score
    levels = Status[above.status] - Status[below.status]
    if levels < 0:
        return 0.0
    if levels == 0 and above.role == "teacher" and below.role == "student":
        return max(gap, options.tie_gap)
    return max(gap, 0.0)


def _chosen_files(files: tuple[SampleFile, ...], options: RankOptions, folder: Path) -> list[SampleFile]:
    names = {each.source for each in files}
    unknown = sorted(set(options.sources) - names)
    if unknown:
        raise ValueError(f"--source {unknown[0]}: {folder} has samples of {', '.join(sorted(names))}")
    kept = [each for each in files if not options.sources or each.source in options.sources]
    for each in kept:
        judged, drawn = judged_path(folder, each.stem), sample_path(folder, each.stem)
        if not judged.is_file():
            raise ValueError(f"{judged}: not there; `rrtf-train judge` comes first")
        samples, verdicts = _keys(drawn), _keys(judged)
        if waiting := len(samples - verdicts):
            raise ValueError(f"{judged}: lacks {waiting} of the samples; `rrtf-train judge` comes first")
        if drawn.is_file() and (strange := len(verdicts - samples)):
            raise ValueError(
                f"{judged}: {strange} of its verdicts are of samples that {drawn} no longer holds; "
                "`rrtf-train judge` comes first"
            )
    roles = {each.role for each in kept}
    if options.chosen_from != "all" and options.chosen_from not in roles:
        raise ValueError(
            f"no source is a {options.chosen_from}, so nothing can be chosen; add one, or take "
            "--chosen-from all"
        )
    return kept


def _keys(path: Path) -> set[object]:
    """Of the records, a last line that a kill cut short left out; none where the file is not there."""
    if not path.is_file():
        return set()
    with path.open("rb") as file:
        return {json.loads(line).get("key") for line in file if line.endswith(b"\n")}


@dataclass
class _Pool:
    """What is ranked, and what is counted on the way."""

    problem_set: ProblemSet
    prompts: dict[str, Prompt]  # by task
    answers: dict[str, list[Candidate]]  # by task
    counts: dict[str, SourceCounts] = field(default_factory=dict)  # by source
    reasons: dict[str, list[str]] = field(default_factory=dict)  # why dropped -> tasks


def _tuples(pool: _Pool, options: RankOptions) -> Iterator[Tuple]:
    for task, found in pool.answers.items():
        candidates = _without_duplicates(found, pool.counts)
        suite = pool.problem_set.suite_of[task]
        random = Random(f"{options.seed}\n{suite}\n{task}")
        ranked = _rank_one(candidates, options, random)
        if isinstance(ranked, str):
            pool.reasons.setdefault(ranked, []).append(task)
            continue
        chosen, pairs = ranked
        yield _tuple(task, suite, pool.prompts[task], chosen, pairs)


def _without_duplicates(found: list[Candidate], counts: dict[str, SourceCounts]) -> list[Candidate]:
    """Each text once, a teacher's rather than a student's: against itself nothing can be ranked."""
    kept: dict[str, Candidate] = {}
    for answer in sorted(found, key=lambda each: each.role != "teacher"):
        if answer.text in kept:
            counts[answer.source].left_out[DUPLICATE] += 1
        else:
            kept[answer.text] = answer
    return list(kept.values())


_Pairs = list[tuple[Candidate, Candidate, float]]


def _rank_one(
    candidates: list[Candidate], options: RankOptions, random: Random
) -> tuple[Candidate, _Pairs] | str:
    """The chosen answer and its pairs, or why the problem is dropped."""
    above = [each for each in candidates if options.chosen_from in ("all", each.role)]
    students = [each for each in candidates if each.role == "student"]
    if not above:
        return "no usable answer to choose"
    best = max(each.score for each in above)
    droppable = options.chosen_from == "teacher" and options.drop_below_student
    if droppable and any(each.score > best for each in students):
        return "its best teacher is below the student"
    above = [each for each in above if Status[each.status] >= Status[options.chosen_status]]
    if not above:
        return f"no answer to choose reaches {options.chosen_status}"
    random.shuffle(above)
    if options.teacher_pick == "shortest":
        above.sort(key=lambda each: (len(each.text), each.text))
    elif options.teacher_pick == "first":
        above.sort(key=candidates.index)
    above.sort(key=lambda each: (-each.score, each.role != "teacher"))  # of equals the teacher's
    above = above[: options.teacher_answers]
    below = list(students if options.rejected_from == "student" else candidates)
    random.shuffle(below)
    if options.rejected_pick != "random":
        below.sort(key=lambda each: each.score, reverse=options.rejected_pick == "nearest")
    below.sort(key=lambda each: Status[each.status] >= Status[above[0].status])
    pairs = [
        (one, other, weight)
        for other in below
        for one in above
        if one is not other and (weight := weight_of(one, other, options)) > 0
    ][: options.pairs_per_prompt]
    return (pairs[0][0] if pairs else above[0]), pairs


def _tuple(task: str, suite: str, prompt: Prompt, chosen: Candidate, pairs: _Pairs) -> Tuple:
    """Only what is trained on is carried along."""
    used: dict[str, Candidate] = {chosen.text: chosen}
    for one, other, _ in pairs:
        used.setdefault(one.text, one)
        used.setdefault(other.text, other)
    place = {text: at for at, text in enumerate(used)}
    numbered = tuple(Pair(place[one.text], place[other.text], weight) for one, other, weight in pairs)
    return Tuple(task, suite, prompt, tuple(used.values()), numbered, place[chosen.text])


def _report(tuples: list[Tuple], pool: _Pool, options: RankOptions) -> dict[str, Any]:
    pairs = [(item, pair) for item in tuples for pair in item.pairs]
    ties = sum(item.candidates[p.teacher].status == item.candidates[p.student].status for item, p in pairs)
    alone = sum(not item.pairs for item in tuples)
    warnings = [
        f"{name}: none of its {each.levels.total()} answers passes; it teaches nothing by itself"
        for name, each in pool.counts.items()
        if each.role == "teacher" and each.levels.total() and not each.levels["ALL_PASS"]
    ]
    if tuples and not pairs:
        warnings.append(
            "no tuple has a pair, so there is no rank loss and RRTF is SFT here: add a student's samples, or "
            "give a --tie-gap above 0"
        )
    elif pairs and ties == len(pairs):
        warnings.append(
            f"every pair is a tie with weight {options.tie_gap:g}: the student solves all that is left; take "
            "harder problems, or sample the student at a higher temperature"
        )
    levels = Counter(item.candidates[pair.student].status for item, pair in pairs)
    return {
        "tuples": len(tuples),
        "pairs": len(pairs),
        "ties": ties,
        "mean_weight": round(sum(pair.weight for _, pair in pairs) / len(pairs), 6) if pairs else None,
        "without_rejected": alone,
        "share_without_rejected": round(alone / len(tuples), 6) if tuples else None,
        "rejected_levels": {level.name: levels[level.name] for level in LEVELS},
        "chosen_by_source": dict(Counter(item.candidates[item.chosen].source for item in tuples)),
        "tuples_by_suite": dict(Counter(item.suite for item in tuples)),
        "dropped": {
            reason: {"problems": len(tasks), "tasks": tasks} for reason, tasks in pool.reasons.items()
        },
        "sources": {name: each.record() for name, each in pool.counts.items()},
        "warnings": warnings,
        "options": asdict(options),
    }

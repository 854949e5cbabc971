"""One TOML file for all stages, and the flags of `rrtf-train run` that override it.

    folder = "runs/first"
    problems = ["mbpp-stubs-train", "leetcode-fit"]

    [[source]]
    name = "student"
    role = "student"
    model = "smollm2-135m-instruct"

    [[source]]
    name = "experts"
    role = "teacher"
    kind = "reference"

    [rank]
    tie_gap = 0.05

    [fit]
    lr = 1e-5

Without [fit] the run ends with the tuples. Its model is that of the student's source unless it names one.
Keys are the fields of SampleOptions (at the top), Source, JudgeOptions, RankOptions and FitOptions. Paths are
relative to the working folder, as on the command line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from training.fit_options import FitOptions
from training.judge import JudgeOptions
from training.rank import RankOptions
from training.sample import SampleOptions
from training.sources import Source
from training.tables import build, parse_value, read_toml

STAGES = ("sample", "judge", "rank", "fit")
TABLES = ("judge", "rank", "fit")
# Keys that decide where and how fast, never what comes out; they may change when a run goes on.
FREE = {
    "sample": ("data_dir",),
    "source": ("api_key_env",),
    "judge": ("workers", "retries"),
    "rank": (),
}  # fmt: skip


@dataclass(frozen=True)
class RunConfig:
    """All that `rrtf-train run` does."""

    folder: Path
    sample: SampleOptions
    judge: JudgeOptions
    rank: RankOptions
    fit: FitOptions | None  # None: the run ends with the tuples


def read_config(path: Path, settings: Sequence[str] = (), folder: Path | None = None) -> RunConfig:
    """The file, overlaid by `settings` ("rank.tie_gap=0", "source.student.k=16") and `folder`.

    Raises ValueError naming the file or flag, the table and the key.
    """
    table = read_toml(path)
    _check_sources(table, str(path))  # before a setting looks for one of them
    for setting in settings:
        apply(table, setting)
    if folder is not None:
        table["folder"] = str(folder)
    return config_of(table, str(path))


def config_of(table: Mapping[str, Any], where: str) -> RunConfig:
    """Raises ValueError beginning with `where`."""
    sources = _check_sources(table, where)
    for name in TABLES:
        if not isinstance(table.get(name, {}), dict):
            raise ValueError(f"{where}: {name} is a table, [{name}]")
    top = {key: value for key, value in table.items() if key not in ("source", "folder", *TABLES)}
    folder = table.get("folder")
    if not isinstance(folder, str) or not folder:
        raise ValueError(f"{where}: folder is missing: give it, or -o on the command line")
    built = tuple(
        build(Source, each, f"{where}: [[source]] {each.get('name', number)}")
        for number, each in enumerate(sources, 1)
    )
    known = {field.name for field in fields(SampleOptions)} - {"sources"} | {"folder", "source", *TABLES}
    unknown = sorted(top.keys() - known)
    if unknown:
        raise ValueError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(sorted(known))}")
    return RunConfig(
        folder=Path(folder),
        sample=build(SampleOptions, top, where, sources=built),
        judge=build(JudgeOptions, table.get("judge", {}), f"{where}: [judge]"),
        rank=build(RankOptions, table.get("rank", {}), f"{where}: [rank]"),
        fit=None if "fit" not in table else _fit(table["fit"], built, Path(folder), f"{where}: [fit]"),
    )


def _check_sources(table: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    sources = table.get("source", [])
    if not isinstance(sources, list) or not all(isinstance(each, dict) for each in sources):
        raise ValueError(f"{where}: sources are [[source]] tables, in two pairs of brackets")
    return sources


def _fit(table: Mapping[str, Any], sources: Sequence[Source], folder: Path, where: str) -> FitOptions:
    values = dict(table)
    if "model" not in values:
        students = list(
            dict.fromkeys(each.model for each in sources if each.role == "student" and not each.url)
        )
        if len(students) != 1 or not students[0]:
            raise ValueError(
                f"{where}: model is missing, and the sources do not tell it: the models of students are "
                f"{', '.join(students) or 'none'}"
            )
        values["model"] = students[0]
    return build(FitOptions, values, where, tuples=folder / "tuples.jsonl", output=folder / "fit")


def apply(table: dict[str, Any], setting: str) -> None:
    """Put KEY=VALUE, TABLE.KEY=VALUE or source.NAME.KEY=VALUE into the table. Raises ValueError naming
    --set."""
    path, equals, text = setting.partition("=")
    words = path.strip().split(".")
    if not equals or not all(words):
        raise ValueError(f"--set {setting}: must be KEY=VALUE, such as rank.tie_gap=0 or source.student.k=16")
    place = table
    if words[0] == "source":
        # A source's name may hold dots.
        name, key = ".".join(words[1:-1]), words[-1]
        found = [each for each in table.get("source", []) if each.get("name") == name]
        if not found:
            named = ", ".join(str(each.get("name")) for each in table.get("source", [])) or "none"
            raise ValueError(f"--set {setting}: no source is called {name!r}; there are: {named}")
        place = found[0]
    else:
        *tables, key = words
        for word in tables:
            place = place.setdefault(word, {})
            if not isinstance(place, dict):
                raise ValueError(f"--set {setting}: {word} is no table")
    place[key] = parse_value(text.strip())


def resolved(config: RunConfig) -> dict[str, dict[str, Any]]:
    """Every key of every stage with its default filled in, as plain data for a JSON file."""
    sample = asdict(config.sample)
    sample["source"] = {source["name"]: source for source in sample.pop("sources")}
    found = {"sample": sample, "judge": asdict(config.judge), "rank": asdict(config.rank)}
    if config.fit is not None:
        found["fit"] = asdict(config.fit)
    return {stage: _plain(record) for stage, record in found.items()}


def differences(before: Mapping[str, Any], now: Mapping[str, Any], stage: str) -> list[str]:
    """What decides a stage's result and differs, as "key: was, is now"."""
    return [
        f"{key}: {_shown(then)}, now {_shown(here)}"
        for key, then, here in _pairs(before, now, "", FREE[stage])
        if then != here
    ]


_ABSENT = object()


def _pairs(
    before: Mapping[str, Any], now: Mapping[str, Any], prefix: str, free: Sequence[str]
) -> list[tuple[str, Any, Any]]:
    found: list[tuple[str, Any, Any]] = []
    for key in dict.fromkeys([*before, *now]):
        then, here = before.get(key, _ABSENT), now.get(key, _ABSENT)
        if key in free:
            continue
        if isinstance(then, dict) and isinstance(here, dict):
            found += _pairs(then, here, f"{prefix}{key}.", FREE["source"])
        else:
            found.append((prefix + key, then, here))
    return found


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "absent"
    return "present" if isinstance(value, dict) else repr(value)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value

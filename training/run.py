"""All stages of one configuration, each done once: `rrtf-train run`.

RUN/run.json     for each stage that was begun: what it was told, whether it is done, and its report
RUN/report.json  the reports of all stages;  RUN/summary.md  what came out, and what to do with it
RUN/before-N/    what a stage had made before it was done again (`redo`); nothing is thrown away

A stopped run goes on where it was. A stage that was begun with other settings is refused with the difference.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rrtf_serve.problems.samples import open_alone
from training.config import STAGES, RunConfig, differences, resolved
from training.fit import fit
from training.fit_options import FitOptions
from training.judge import judge
from training.problem_files import next_aside, write_text
from training.rank import rank
from training.sample import read_index, sample, write_json

# What a source may gain without what was drawn from it being another source's: more answers of the same kind.
GROWTH = ("k", "temperatures", "role")
MOVED = {"judge": ("judged",), "rank": ("tuples.jsonl", "tuples.stats.json"), "fit": ("fit",)}

Say = Callable[[str], None]
State = dict[str, dict[str, Any]]


@dataclass
class _Run:
    config: RunConfig
    state: State
    settings: dict[str, dict[str, Any]]
    say: Say
    reports: dict[str, Any] = field(default_factory=dict)
    anew: bool = False  # a stage was done now, so what the later ones made is of its past

    def stage(self, name: str, work: Callable[[], dict[str, Any]]) -> None:
        """Do it, unless it is done, none before it was done now, and all that it made is there."""
        before = self.state.get(name, {})
        made = _made(name, before["report"]) if before.get("done") and not self.anew else []
        if made and all((self.config.folder / each).exists() for each in made):
            self.say(f"{name}: done before")
            self.reports[name] = before["report"]
            return
        self.say(f"{name} ...")
        self._keep(name, {"config": self.settings[name], "done": False})
        report = work()
        self.anew = True
        self._keep(name, {"config": self.settings[name], "done": True, "report": report})
        self.reports[name] = report

    def fit(self, options: FitOptions) -> None:
        """It knows itself what is done, and what its folder was made with."""
        begun = "fit" in self.state
        self.say("fit ...")
        self._keep("fit", {"done": False})
        try:
            report = fit(options)
        except ValueError as error:
            if begun:
                raise ValueError(f"{error}; --redo fit keeps what is there aside and trains anew") from error
            raise
        self._keep("fit", {"done": True, "report": report})
        self.reports["fit"] = report

    def _keep(self, name: str, record: dict[str, Any]) -> None:
        self.state[name] = record
        write_json(self.config.folder / "run.json", self.state)


def run(config: RunConfig, redo: str | None = None, say: Say = lambda _: None) -> dict[str, Any]:
    """Do every stage that is not done; the reports by stage.

    `redo` names the stage from which all is done again. `say` hears which stage is at work.
    Raises ValueError where a stage was begun with other settings (each difference is named), BusyError where
    another process runs in the folder, and what the stages raise.
    """
    if redo is not None and redo not in STAGES:
        raise ValueError(f"--redo {redo}: must be one of {', '.join(STAGES)}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "run is one process; leave [fit] out of the file and start `rrtf-train fit` under accelerate"
        )
    folder = config.folder
    settings = resolved(config)
    problem_set = config.sample.load()
    settings["sample"]["problems_digest"] = problem_set.suite.digest
    with open_alone(folder / ".lock"):
        state = read_state(folder)
        check(state, settings, redo)
        if redo is not None:
            _set_aside(folder, state, settings, redo)
        work = _Run(config, state, settings, say)
        data = config.sample.data_dir
        work.stage("sample", lambda: sample(config.sample, folder))
        work.stage("judge", lambda: judge(folder, config.judge, data))
        work.stage("rank", lambda: rank(folder, config.rank, None, data))
        if config.fit is not None:
            work.fit(config.fit)
        write_json(folder / "report.json", work.reports)
        write_text(folder / "summary.md", summary(config, work.reports))
    return work.reports


def _made(stage: str, report: dict[str, Any]) -> list[str]:
    """Files of the folder that the stage made."""
    if stage == "sample":
        return ["samples/index.json", *(f"samples/{stem}.jsonl" for stem in report)]
    if stage == "judge":
        return ["judged/dropped.json", *(f"judged/{stem}.jsonl" for stem in report["files"])]
    return ["tuples.jsonl"]


def read_state(folder: Path) -> State:
    """What RUN/run.json holds; empty where there is none. Raises ValueError on a damaged file."""
    path = folder / "run.json"
    try:
        found: State = json.loads(path.read_text("utf-8"))
        for stage in found.keys() & {"sample", "judge", "rank"}:
            _ = found[stage]["config"].items(), found[stage]["done"] and found[stage]["report"]
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: damaged ({error!r}); move it away, and each stage looks at its files"
        ) from error
    return found


def check(state: State, settings: dict[str, dict[str, Any]], redo: str | None) -> None:
    """Raises ValueError where a stage that was begun, and is not done again, was told something else."""
    for stage in STAGES:
        if stage == redo:
            return
        if stage not in state or stage == "fit":  # `fit` holds its own settings against its folder's
            continue
        found = differences(state[stage]["config"], settings[stage], stage)
        if found:
            listed = "".join(f"\n  {stage}.{each}" for each in found)
            raise ValueError(
                f"this folder was begun with other settings:{listed}\nGive those again, another folder (-o), "
                f"or --redo {stage}: it does {stage} and what follows again and keeps aside what is there"
            )


def _set_aside(folder: Path, state: State, settings: dict[str, dict[str, Any]], redo: str) -> None:
    """Move what `redo` and the later stages have made to a folder of its own."""
    later = STAGES[STAGES.index(redo) :]
    names = [name for stage in later if stage in MOVED for name in MOVED[stage]]
    if redo == "sample":
        names.remove("judged")  # verdicts are kept by content: those of the same programmes hold
        names += ["samples/index.json", *_files_of_changed_sources(folder, state, settings)]
    aside = next_aside(folder)
    for name in names:
        path = folder / name
        if path.exists():
            kept = aside / name
            kept.parent.mkdir(parents=True, exist_ok=True)
            path.rename(kept)
    for stage in later:
        state.pop(stage, None)
    write_json(folder / "run.json", state)


def _files_of_changed_sources(folder: Path, state: State, settings: dict[str, dict[str, Any]]) -> list[str]:
    """Samples and verdicts that can't stand beside what would be drawn now."""
    before = state.get("sample", {}).get("config", {})
    now = settings["sample"]
    kept = {
        name
        for name, source in before.get("source", {}).items()
        if (other := now["source"].get(name)) and _without_growth(source) == _without_growth(other)
    }
    if not _grown(before, now):
        kept = set()
    files = read_index(folder).files if (folder / "samples" / "index.json").is_file() else ()
    stems = [each.stem for each in files if each.source not in kept]
    return [f"{place}/{stem}.jsonl" for place in ("samples", "judged") for stem in stems]


def _grown(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether all that was asked is asked still. Where a file of problems has changed under its name, nobody
    can say which of its problems did."""
    if not before or before["format"] != now["format"] or not set(before["problems"]) <= set(now["problems"]):
        return False
    more = len(now["problems"]) > len(before["problems"])
    if before["limit"] == now["limit"]:
        return more or before["problems_digest"] == now["problems_digest"]
    return before["limit"] is not None and (now["limit"] is None or now["limit"] > before["limit"])


def _without_growth(source: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in source.items() if key not in GROWTH}


def summary(config: RunConfig, reports: dict[str, Any]) -> str:
    """What came out, and the commands that measure, convert and serve it; Markdown."""
    found = reports["rank"]
    lines = [
        f"# {config.folder.name}",
        "",
        f"{found['tuples']} tuples with {found['pairs']} pairs ({found['ties']} ties) from "
        f"{', '.join(config.sample.problems)}; statistics: `tuples.stats.json`.",
        "",
    ]
    if config.fit is None:
        return "\n".join(
            [
                *lines,
                "Next:",
                "",
                f"    rrtf-train fit {config.folder / 'tuples.jsonl'} --model MODEL -o FIT",
                "",
            ]
        )
    options = config.fit
    best = options.output / "best"  # where a development set has chosen one
    trained = str(best if best.is_dir() else options.output / "last")
    model = str(config.folder / "model")
    made = [f"rrtf-convert ct2 {shlex.quote(trained)} -o {model} --quantization int8"]
    if options.tune != "full":
        merged = str(config.folder / "merged")
        made = [
            f"rrtf-convert merge {shlex.quote(options.model)} {trained} -o {merged}",
            f"rrtf-convert ct2 {merged} -o {model} --quantization int8",
        ]
    made += [f"rrtf-bench passk --suite humaneval --model {model}", f"rrtf-serve --model {model}"]
    return "\n".join(
        [
            *lines,
            f"`{options.method}` of {options.model}: {reports['fit']['steps']} steps, in `{trained}`.",
            "",
            "Next:",
            "",
            *(f"    {line}" for line in made),
            "",
        ]
    )

"""`make train-demo` on four of its problems: from sampling to a converted model that answers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rrtf_serve.models.source import Source
from rrtf_serve.problems.prompts import Prompt
from rrtf_serve.problems.samplers import Ask, Decoding
from rrtf_serve.sampling import SamplerConfig, open_sampler
from rrtf_serve.sandbox.judge import Sandbox
from rrtf_serve.sandbox.limits import SandboxUnavailable

ROOT = Path(__file__).parent.parent


def run(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_whole_road_in_small(tmp_path: Path, smollm2_source: Source, qwen_source: Source) -> None:
    try:
        Sandbox(workers=1).close()
    except SandboxUnavailable as error:
        pytest.skip(f"no sandbox here: {error}")
    assert smollm2_source.path.exists() and qwen_source.path.exists()  # the student and the teacher
    folder = tmp_path / "demo"
    smaller = (
        "limit=4", "source.student.k=2", "source.student.max_tokens=96", "source.big.max_tokens=96",
        "fit.epochs=1", "fit.batch=2",
    )  # fmt: skip
    settings = [word for setting in smaller for word in ("--set", setting)]
    told = run("training.cli", "run", "training/demo/run.toml", "-o", str(folder), *settings, "--json")
    report = json.loads(told)
    assert report["rank"]["tuples"] == 4  # the reference solutions pass
    assert report["fit"]["steps"] == 2
    lines = (folder / "fit" / "log.jsonl").read_text().splitlines()
    assert len(lines) == 2 and all(json.loads(line)["loss"] > 0 for line in lines)
    assert "rrtf-convert ct2" in (folder / "summary.md").read_text()
    run("convert.cli", "ct2", str(folder / "fit" / "last"), "-o", str(tmp_path / "int8"))
    ask = Ask(Prompt("chat", message="Write a Python function that doubles a number."), 0)
    with open_sampler(SamplerConfig(str(tmp_path / "int8"))) as sampler:
        [(_, answer)] = sampler.answer([ask], Decoding(max_tokens=48))
    assert "def " in answer.text

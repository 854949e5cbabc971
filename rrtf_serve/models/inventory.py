"""What lies in a store: the records of fetched sources, conversions, partial downloads, and their removal.

Layout under the store's home:
    models/<name>/       files assembled here (hub downloads stay in the Hugging Face cache)
    converted/<folder>/  servable folders, see Store.converted
    sources/<name>.json  what was fetched, from where, under which licence
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from rrtf_serve.models import hub, wheels
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.folder import read_card
from rrtf_serve.models.source import Source, read_json, safe_name


@dataclass(frozen=True)
class Record:
    """What was fetched and where it lies; one file of sources/."""

    name: str
    kind: str
    path: str
    digest: str
    licence: str
    origin: str


@dataclass(frozen=True)
class Entry:
    """One thing that lies in the store and takes room."""

    name: str
    what: Literal["source", "conversion", "partial"]
    path: Path
    size_bytes: int
    licence: str
    origin: str


def remember(home: Path, source: Source) -> Source:
    """Write the source's record where it isn't there already.

    Offline the hub can't tell a licence; the one recorded when it could is kept. Returns the source with it.
    """
    path = _record_path(home, source.name)
    before = read_json(path) if path.is_file() else {}
    if not source.licence and before.get("path") == str(source.path):
        source = replace(source, licence=before.get("licence", ""))
    record = asdict(
        Record(source.name, source.kind, str(source.path), source.digest, source.licence, source.origin)
    )
    if record != before:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f"{path.name}.{os.getpid()}")
        fresh.write_text(json.dumps(record, indent=2) + "\n", "utf-8")
        fresh.replace(path)
    return source


def records(home: Path) -> list[Record]:
    """Records whose files still exist. Raises ModelError on a file of sources/ that is no record."""
    found = []
    folder = home / "sources"
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        try:
            record = Record(**read_json(path))
        except TypeError as error:
            raise ModelError(f"{path}: not a record of this store ({error}); remove it.") from error
        if Path(record.path).exists():
            found.append(record)
    return found


def entries(home: Path) -> list[Entry]:
    """Everything in the store that takes room, largest first."""
    found = [
        Entry(r.name, "source", Path(r.path), size_of(Path(r.path)), r.licence, r.origin)
        for r in records(home)
    ]
    for folder in _folders(home / "converted"):
        card = read_card(folder)
        licence, origin = (card.licence, f"converted to {card.quantization}") if card else ("", "no card")
        found.append(Entry(folder.name, "conversion", folder, size_of(folder), licence, origin))
    for folder in _folders(home / "models"):
        left = [path for path in wheels.companions(folder / f"{folder.name}.gguf") if path.exists()]
        if left:
            size = sum(map(size_of, left))
            found.append(Entry(folder.name, "partial", folder, size, "", "unfinished download"))
    return sorted(found, key=lambda entry: -entry.size_bytes)


def removable(home: Path, name: str) -> list[Path]:
    """What belongs to the model `name`: conversions, its folder of downloads, its hub snapshot, its record.

    `name` may also be one conversion's folder name, which is then all.
    """
    converted = _folders(home / "converted")
    exact = [folder for folder in converted if folder.name == name]
    if exact:
        return exact
    pattern = re.compile(re.escape(safe_name(name)) + r"-[a-z0-9_]+-[0-9a-f]{8}")
    paths = [folder for folder in converted if pattern.fullmatch(folder.name)]
    paths += [folder for folder in _folders(home / "models") if folder.name == safe_name(name)]
    record = next((r for r in records(home) if safe_name(r.name) == safe_name(name)), None)
    if record and home not in Path(record.path).parents:
        paths.append(Path(record.path))
    if (path := _record_path(home, name)).is_file():
        paths.append(path)
    return paths


def delete(home: Path, path: Path) -> int:
    """Remove a file or folder of the store, or a revision of the Hugging Face cache; bytes freed."""
    if home not in path.parents:
        return hub.remove(path)
    freed = size_of(path)
    if path.is_file():
        path.unlink()
        return freed
    # Renamed first: a removal that is cut short must not leave a folder that looks complete.
    grave = path.with_name(f".removed-{path.name}-{os.getpid()}")
    path.rename(grave)
    shutil.rmtree(grave)
    return freed


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _record_path(home: Path, name: str) -> Path:
    return home / "sources" / f"{safe_name(name)}.json"


def _folders(parent: Path) -> list[Path]:
    if not parent.is_dir():
        return []
    return sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))

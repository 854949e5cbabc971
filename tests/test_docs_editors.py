"""docs/editors: what a reader pastes is well-formed, and what it asks of the server is there."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import httpx
import pytest
import yaml
from live import NAME, Running, serving
from starlette.routing import Match, Route

from rrtf_serve.api.app import create_app
from rrtf_serve.api.models import Models
from rrtf_serve.api.settings import ApiSettings
from rrtf_serve.config import ServeConfig
from rrtf_serve.models import catalog

PAGES = sorted((Path(__file__).parent.parent / "docs" / "editors").glob("*.md"))
ADDRESS = "http://127.0.0.1:8000"
# Prefixes under which clients put paths of their own.
BASES = ("", "/", "/v1", "/v1/")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAIRS = {")": "(", "]": "[", "}": "{"}


def blocks(page: Path) -> list[tuple[str, str]]:
    """The language and the text of each block of code."""
    return FENCE.findall(page.read_text("utf-8"))


def all_blocks(*languages: str) -> list[str]:
    return [text for page in PAGES for language, text in blocks(page) if language in languages]


def check_brackets(text: str) -> None:
    """Strings and comments must have been taken out."""
    opened = []
    for character in text:
        if character in PAIRS.values():
            opened.append(character)
        elif character in PAIRS:
            assert opened, f"{character} closes nothing"
            assert opened.pop() == PAIRS[character]
    assert not opened


def check_lua(text: str) -> None:
    bare = re.sub(r"'[^'\n]*'|\"[^\"\n]*\"|--[^\n]*", "", text)
    assert "'" not in bare
    assert '"' not in bare
    check_brackets(bare)
    assert len(re.findall(r"\b(?:function|do|then)\b", bare)) == len(re.findall(r"\bend\b", bare))


def check_elisp(text: str) -> None:
    bare = re.sub(r'"(?:[^"\\]|\\.)*"|;[^\n]*', "", text)
    assert '"' not in bare
    check_brackets(bare)


def check_vim(text: str) -> None:
    bare = re.sub(r"'[^'\n]*'", "", text)
    assert "'" not in bare
    check_brackets(bare)
    # vim-plug knows its command only between these two.
    words = [line.split()[:2] for line in text.splitlines() if "plug" in line.lower().partition("'")[0]]
    if words:
        assert words[0] == ["call", "plug#begin()"]
        assert words[-1] == ["call", "plug#end()"]


CHECKS: dict[str, Callable[[str], object]] = {
    "json": json.loads,
    "yaml": yaml.safe_load,
    "toml": tomllib.loads,
    "python": lambda text: compile(text, "block", "exec"),
    "sh": lambda text: shlex.split(text, comments=True),
    "lua": check_lua,
    "elisp": check_elisp,
    "vim": check_vim,
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_are_well_formed(page: Path) -> None:
    for language, text in blocks(page):
        CHECKS[language](text)


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("json", '{"a": 1,}'),
        ("yaml", "a: b: c"),
        ("toml", "a = b"),
        ("python", "print("),
        ("sh", "echo 'a"),
        ("lua", "return { a = function() f() }"),
        ("lua", "f('a)"),
        ("elisp", '(setq a "(")) '),
        ("vim", "let a = { 'b': 1 "),
        ("vim", "Plug 'a/b'\n"),
        ("vim", "call plug#begin()\nPlug 'a/b'\n"),
    ],
)
def test_the_checks_find_what_is_wrong(language: str, text: str) -> None:
    with pytest.raises((AssertionError, ValueError, SyntaxError, yaml.YAMLError)):
        CHECKS[language](text)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def routes(server: Running) -> list[Route]:
    app = create_app(Models([server.served]), settings=ApiSettings())
    return [route for route in app.router.routes if isinstance(route, Route)]


def answers(routes: list[Route], method: str, path: str) -> bool:
    scope = {"type": "http", "method": method, "path": path, "headers": []}
    return any(route.matches(scope)[0] is Match.FULL for route in routes)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_named_paths_are_the_servers(page: Path, routes: list[Route]) -> None:
    text = page.read_text("utf-8")
    for method, path in re.findall(r"`(GET|POST) (/[^`\s]*)`", text):
        assert answers(routes, method, path), f"{method} {path}"
    for path in re.findall(re.escape(ADDRESS) + r"([\w/.:-]*)", text):
        named = path.rstrip(".:")
        assert named in BASES or any(answers(routes, method, named) for method in ("GET", "POST")), named


def curls() -> list[str]:
    joined = [text.replace("\\\n", " ") for text in all_blocks("sh")]
    return [line for text in joined for line in text.splitlines() if line.startswith("curl ")]


@pytest.mark.parametrize("command", curls())
def test_curl_lines_get_an_answer(command: str, server: Running) -> None:
    words = shlex.split(command)
    url = words[1].replace(ADDRESS, server.address).replace(catalog.DEFAULT, NAME)
    assert url.startswith(server.address)
    if "-d" not in words:
        assert httpx.get(url).status_code == 200
        return
    header = words[words.index("-H") + 1].split(": ")
    body = json.loads(words[words.index("-d") + 1])
    if "model" in body:
        assert catalog.find(body["model"]) is not None
        body["model"] = NAME
    answer = httpx.post(url, content=json.dumps(body), headers=dict([header]))
    assert answer.status_code == 200, answer.text


def test_the_models_of_the_settings_are_in_the_catalogue() -> None:
    lines = [
        line for text in all_blocks(*CHECKS) for line in text.splitlines() if "--served-name" not in line
    ]
    names = {name for line in lines for name in re.findall(r"\b(?:qwen2\.5|starcoder)[\w.:-]*", line)}
    assert catalog.DEFAULT in names
    for name in names:
        assert catalog.find(name) is not None, name


def test_the_flags_of_the_server_are_known() -> None:
    text = "\n".join(page.read_text("utf-8") for page in PAGES)
    known = {field.name.replace("_", "-") for field in fields(ServeConfig)}
    # Where the command is named, and where a flag stands alone between ticks.
    lines = [line for line in text.splitlines() if line.startswith(("rrtf-serve ", "RRTF_API_KEYS="))]
    flags = {flag for line in lines for flag in re.findall(r"--([a-z-]+)", line)}
    flags |= {
        flag
        for line in re.findall(r"`rrtf-serve ([^`]*)`", text)
        for flag in re.findall(r"--([a-z-]+)", line)
    }
    assert {"model", "host", "port", "served-name"} <= flags
    assert flags <= known


def anchor(heading: str) -> str:
    """As GitHub makes one of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target, fragment in re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]*))?\)", page.read_text("utf-8")):
        file = page.parent / target if target else page
        assert file.is_file(), target
        if fragment:
            headings = re.findall(r"^#+ (.*)$", FENCE.sub("", file.read_text("utf-8")), re.MULTILINE)
            assert fragment in map(anchor, headings), f"{target}#{fragment}"

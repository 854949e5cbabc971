"""What a quantisation is calibrated on: code by default, never evaluation data.

    corpus = load_corpus("code")
    windows = cut(corpus, tokenizer, samples=128, length=2048, seed=0)

The same corpus, tokenizer, seed and sizes give the same windows; their digest tells.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import random
import re
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.tokens import Tokenizer
from rrtf_serve.problems.origins import json_lines
from rrtf_serve.problems.suites import SUITES, load_suite

Part = Literal["calibration", "held-out"]
FIELDS = ("text", "content", "code", "completion")  # of a JSON Lines file, the first that is there
# Training suites, each with the evaluation suite whose problems it also holds and which are left out.
TRAINING_SUITES = {
    "leetcode-train": "leetcode-after-2022-07",
    "mbpp-train": "mbpp-plus",
    "mbpp-sanitized-train": "mbpp-plus",
}
_MBPP_TRAINING = range(601, 975)
_MBPP_ID = re.compile(r"(?:Mbpp(?:Eval)?/|mbpp_)(\d+)")
_TOKENIZED = 8  # times the tokens that are used, at the most: enough to choose from
# Modules written in Python that Python 3.11 to 3.14 all have as one file. No file of one list is much like a
# file of the other: posixpath, which ntpath resembles, is in neither.
_CALIBRATION = """
argparse ast base64 bdb bisect bz2 calendar cmd code codecs collections/__init__ configparser contextlib
copy csv dataclasses difflib dis doctest email/_header_value_parser email/header email/message enum
fileinput fnmatch fractions ftplib functools gettext gzip hashlib heapq hmac html/parser http/client
http/cookiejar http/cookies http/server imaplib importlib/_bootstrap_external inspect json/decoder
json/encoder linecache locale logging/__init__ logging/config logging/handlers mailbox mimetypes
modulefinder multiprocessing/managers multiprocessing/pool multiprocessing/shared_memory netrc numbers
optparse os pdb pickle pkgutil pprint pyclbr queue random reprlib runpy sched secrets selectors shelve
shutil smtplib socket socketserver statistics subprocess tarfile tempfile textwrap timeit tokenize trace
typing unittest/case unittest/loader unittest/mock urllib/parse urllib/request uuid weakref wsgiref/handlers
xml/dom/minidom xmlrpc/client
"""
_HELD_OUT = """
asyncio/base_events asyncio/locks asyncio/queues asyncio/streams asyncio/tasks codeop colorsys
concurrent/futures/process concurrent/futures/thread copyreg filecmp getopt getpass graphlib ipaddress
keyword ntpath operator pickletools plistlib poplib profile pstats quopri shlex ssl stat stringprep symtable
tabnanny threading tomllib/_parser traceback types webbrowser xml/etree/ElementTree zipimport
zoneinfo/_zoneinfo
"""


def standard_library_files(part: Part) -> list[Path]:
    """Source files of the running interpreter's standard library, in a fixed order.

    "calibration" is what quantisation may see, "held-out" what parity is measured on; the two share no file.
    Which modules these are is fixed, their text is the interpreter's: compare figures of equal digests only.
    Modules that a distribution leaves out are left out here. Raises ModelError when more than half are
    absent, since such an interpreter has no library of Python files.
    """
    names = (_CALIBRATION if part == "calibration" else _HELD_OUT).split()
    folder = Path(sysconfig.get_path("stdlib"))
    found = [path for name in names if (path := folder / f"{name}.py").is_file()]
    if 2 * len(found) < len(names):
        raise ModelError(
            f"{folder}: holds {len(found)} of {len(names)} modules of the standard library as Python files; "
            "use a Python that has them"
        )
    return found


@dataclass(frozen=True)
class Corpus:
    """Documents to calibrate on. `name` is what the user asked for, `description` what that is."""

    name: str
    description: str
    documents: tuple[str, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of the documents in their order."""
        found = hashlib.sha256()
        for document in self.documents:
            found.update(hashlib.sha256(document.encode("utf-8", "surrogatepass")).digest())
        return found.hexdigest()


@dataclass(frozen=True)
class Windows:
    """Token ids, `samples` rows of `length` each, and the record of where they came from."""

    ids: tuple[tuple[int, ...], ...]
    record: dict[str, Any]


def load_corpus(name: str, data_dir: Path | None = None) -> Corpus:
    """The corpus that `--calibration` names: "code", "text", a training suite, or a file of the user's own.

    code: the calibration part of the standard library. text: the prose of Python's language reference as
    `pydoc_data` carries it, without its examples. A suite: prompts with their reference solutions. A file:
    one document as it is, or one per line of a .jsonl (.gz) file, in one of FIELDS. Raises ValueError on
    evaluation data and on what can't be read, naming it.
    """
    if name == "code":
        documents = [path.read_text("utf-8") for path in standard_library_files("calibration")]
        return Corpus(name, "standard library of the Python that ran, calibration part", tuple(documents))
    if name == "text":
        return Corpus(name, "prose of the Python language reference (pydoc_data.topics)", tuple(_prose()))
    if name in SUITES:
        return _suite(name, data_dir)
    path = Path(name).expanduser()
    if not path.is_file():
        raise ValueError(
            f"--calibration {name}: no such file; other choices are code, text, {', '.join(TRAINING_SUITES)}"
        )
    documents = list(_documents(path))
    if not any(document.strip() for document in documents):
        raise ValueError(f"--calibration {name}: holds no text")
    return Corpus(name, f"file {path.name}", tuple(documents))


def cut(
    corpus: Corpus,
    tokenizer: Tokenizer,
    *,
    samples: int,
    length: int,
    seed: int,
    first: str = "",
    end: str = "",
) -> Windows:
    """`samples` windows of `length` tokens each, chosen by `seed` from all over the corpus.

    Documents are cut into windows; what is left of each is joined with the next one's, with the token `end`
    between them. `first` is put before every window, for models that begin with a token of their own. Raises
    ValueError naming the flags where the corpus is too small.
    """
    if samples < 1 or length < 2:
        raise ValueError(f"--samples {samples} --seqlen {length}: at least 1 sample of 2 tokens is needed")
    head, mark = (_ids(tokenizer, token) for token in (first, end))
    taken = length - len(head)
    generator = random.Random(seed)
    order = list(range(len(corpus.documents)))
    generator.shuffle(order)
    pieces: list[list[int]] = []
    rest: list[int] = []
    for index in order:
        ids = tokenizer.encode(corpus.documents[index], specials=False) + mark
        whole = len(ids) - len(ids) % taken
        pieces += [ids[at : at + taken] for at in range(0, whole, taken)]
        rest += ids[whole:]
        while len(rest) >= taken:
            pieces.append(rest[:taken])
            rest = rest[taken:]
        if len(pieces) >= _TOKENIZED * samples:
            break
    if len(pieces) < samples:
        raise ValueError(
            f"--calibration {corpus.name}: gives {len(pieces)} samples of {length} tokens, "
            f"{samples} were asked for; lower --samples or --seqlen, or give more text"
        )
    chosen = tuple(tuple(head + ids) for ids in generator.sample(pieces, samples))
    digest = hashlib.sha256(json.dumps(chosen, separators=(",", ":")).encode("ascii")).hexdigest()
    record = {
        "corpus": corpus.name if corpus.name in ("code", "text", *SUITES) else "file",
        "description": corpus.description,
        "corpus_sha256": corpus.digest,
        "samples": samples,
        "seqlen": length,
        "seed": seed,
        "tokens_sha256": digest,
    }
    return Windows(chosen, record)


def _ids(tokenizer: Tokenizer, token: str) -> list[int]:
    found = tokenizer.token_id(token) if token else None
    return [] if found is None else [found]


def _suite(name: str, data_dir: Path | None) -> Corpus:
    if name not in TRAINING_SUITES:
        raise ValueError(
            f"--calibration {name}: is an evaluation suite, and what a model is tested on must not shape it; "
            f"training suites are {', '.join(TRAINING_SUITES)}"
        )
    evaluated = TRAINING_SUITES[name]
    suite = load_suite(name, data_dir)
    try:
        held_back = load_suite(evaluated, data_dir).problems.keys()
    except ValueError as error:
        raise ValueError(
            f"--calibration {name}: shares problems with {evaluated}, which must be left out "
            f"and can't be read: {error}"
        ) from error
    documents = [
        problem.program(problem.reference)
        for problem in suite.problems.values()
        if problem.reference is not None and problem.task_id not in held_back
    ]
    return Corpus(name, f"{name} without the problems of {evaluated}", tuple(documents))


def _documents(path: Path) -> Iterator[str]:
    if path.suffix == ".json":  # it would be one document, and its problems not seen
        raise ValueError(f"--calibration {path}: is JSON as a whole; write one object per line, as .jsonl")
    if not path.name.removesuffix(".gz").endswith((".jsonl", ".ndjson")):
        try:
            yield path.read_text("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"--calibration {path}: is not UTF-8 text ({error})") from error
        return
    for number, record in json_lines(path):
        if problem := _evaluation_problem(record):
            raise ValueError(f"{path}:{number}: {problem} is evaluation data, which must not shape a model")
        text = next((record[name] for name in FIELDS if isinstance(record.get(name), str)), None)
        if text is None:
            raise ValueError(f"{path}:{number}: has none of the fields {', '.join(FIELDS)}")
        yield text


def _evaluation_problem(record: Mapping[str, Any]) -> str:
    """What a line of a file is called if it is a problem that models are tested on; empty: it is none.

    Told by the names that the suites and what was made from them use, and MBPP and LeetCodeDataset, whose own
    files have plain numbers and titles for names, by their other fields.
    """
    for name in (record.get("task_id"), record.get("name")):
        if not isinstance(name, str):
            continue
        mbpp = _MBPP_ID.match(name)
        if "HumanEval" in name or (mbpp and int(mbpp[1]) not in _MBPP_TRAINING):
            return name
    number = record.get("task_id")
    tests = record.get("test_list", record.get("test"))
    if type(number) is int and isinstance(tests, list) and number not in _MBPP_TRAINING:
        return f"MBPP's problem {number}"
    facts = record.get("meta")
    if isinstance(facts, dict) and "question_id" in facts:  # leetcode-train leaves out what is tested on
        return f"LeetCode's {record.get('task_id')} (--calibration leetcode-train has those that are not)"
    return ""


def _prose() -> Iterator[str]:
    """Paragraphs at the margin, longer than a line and without code; one document per topic."""
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError as error:
        raise ValueError(f"--calibration text: this Python comes without pydoc_data ({error})") from error
    for name in sorted(topics):
        paragraphs = topics[name].split("\n\n")
        kept = [
            text
            for text in paragraphs
            if len(text) > 80 and not re.search(r"^\s|::=|>>>|^[*=-]{3}", text, re.MULTILINE)
        ]
        if kept:
            yield "\n\n".join(kept)

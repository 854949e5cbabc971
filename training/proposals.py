"""What a teacher proposes for a task without tests: a signature, and calls to try a solution on.

Nothing that a teacher says is run here or believed: signatures are parsed, calls must have literal arguments
that the signature takes, and what a call should return is never asked for.
"""

from __future__ import annotations

import ast
import doctest
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rrtf_serve.problems.origins import Record, json_lines
from rrtf_serve.problems.problem import Problem
from rrtf_serve.problems.prompts import Prompt
from rrtf_serve.problems.samplers import Ask, Decoding, Sampler, SamplerError
from rrtf_serve.problems.samples import Journal
from rrtf_serve.problems.syntax import missing_body, parse, parses
from training.fingerprints import refuse_benchmarks
from training.outcomes import spelled
from training.problem_files import TEST_FIELDS

LONGEST_CALL = 300  # characters
_FENCE = re.compile(r"^[ \t]*`{3,}[^\n]*\n(.*?)(?:^[ \t]*`{3,}|\Z)", re.DOTALL | re.MULTILINE)

_SIGNATURE = """\
Choose the header of one Python function that solves the task below: a clear name, clear parameter names, \
and type hints. Answer with one Python code block that holds the def line with `...` as its body, and with \
nothing else.

Task:
{text}
"""

# Asked for as assertions, since small models that are asked for bare calls write the function instead. The
# values they state are not read.
_CALLS = """\
A function `{header}` was written for this task:

{text}

Write {count} assert statements that test it, such as `assert {name}(...) == ...`: ordinary inputs of \
several sizes, and every edge case that the task allows. One statement on a line, with literal arguments and \
without variables. Answer with one Python code block that holds the assert statements and not the function.
"""


@dataclass(frozen=True)
class Task:
    """A problem in words. `signature` is a function's header ("def f(x: int) -> int:"), empty where the
    task names none."""

    task_id: str
    text: str
    signature: str = ""
    licence: str | None = None
    lineage: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Proposal:
    """A task's function and the calls to try solutions on, as source text; `examples` are those whose values
    the task itself states."""

    signature: str
    entry_point: str
    calls: tuple[str, ...]
    examples: dict[str, str] = field(default_factory=dict)  # call -> literal


def read_tasks(path: Path) -> list[Task]:
    """Tasks of a JSON Lines file. Raises ValueError naming file, line and field."""
    tasks: dict[str, Task] = {}
    for number, record in json_lines(path):
        for name in ("task_id", "text"):
            if not isinstance(record.get(name), str) or not record[name].strip():
                raise ValueError(f"{path}:{number}: {name} is missing or not a text")
        signature = record.get("signature") or ""
        if not isinstance(signature, str):
            raise ValueError(f"{path}:{number}: signature must be a text")
        tests = next((name for name in TEST_FIELDS if name in record), None)
        if tests is not None:
            raise ValueError(f"{path}:{number}: has tests already ({tests}); they would be lost")
        if not isinstance(record.get("licence") or "", str) or not isinstance(
            record.get("lineage") or {}, dict
        ):
            raise ValueError(f"{path}:{number}: licence must be a text, lineage an object")
        if signature and not header_of(signature):
            raise ValueError(f"{path}:{number}: signature is no header of a Python function")
        if record["task_id"] in tasks:
            raise ValueError(f"{path}:{number}: task_id {record['task_id']!r} comes twice")
        tasks[record["task_id"]] = Task(
            record["task_id"], record["text"].strip(), header_of(signature), record.get("licence"),
            record.get("lineage") or {},
        )  # fmt: skip
    if not tasks:
        raise ValueError(f"{path}: no tasks in it")
    refuse_benchmarks((Problem(each.task_id, "", task=each.text) for each in tasks.values()), str(path))
    return list(tasks.values())


def signature_prompt(task: Task) -> Prompt:
    return Prompt("signature", message=_SIGNATURE.format(text=task.text))


def calls_prompt(task: Task, signature: str, count: int) -> Prompt:
    """Asks for `count` calls of the function of this header."""
    name = name_of(signature)
    return Prompt(
        "calls",
        message=_CALLS.format(
            text=task.text, header=signature.removeprefix("def ").removesuffix(":"), count=count, name=name
        ),
    )


def header_of(code: str) -> str:
    """The header of the first plain function in code or in an answer's first block; empty where there is
    none."""
    block = _FENCE.search(code)
    text = (block[1] if block else code).strip("\n")
    whole = text + missing_body(text)
    if not parses(whole):
        return ""
    function = next((node for node in parse(whole).body if isinstance(node, ast.FunctionDef)), None)
    if function is None or function.decorator_list:
        return ""
    returns = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    return f"def {function.name}({ast.unparse(function.args)}){returns}:"


def name_of(signature: str) -> str:
    """The function's name in a header that `header_of` made."""
    return signature.removeprefix("def ").partition("(")[0]


def calls_in(text: str, signature: str) -> Iterator[str]:
    """Calls of the header's function in a text, each once and in one spelling, whose arguments are literals
    that the function takes."""
    name = name_of(signature)
    arguments = _arguments(signature)
    seen = set()
    for found in re.finditer(rf"(?<![\w.]){re.escape(name)}\(", text):
        call = _call_at(text[found.start() : found.start() + LONGEST_CALL])
        if call is None or not _fits(call, arguments) or not _literal(call):
            continue
        spelled = ast.unparse(call)
        if spelled not in seen and len(spelled) <= LONGEST_CALL:
            seen.add(spelled)
            yield spelled


def examples_in(text: str, signature: str) -> dict[str, str]:
    """Calls of the header's function whose values a text states, as `assert f(1) == 2` or as a doctest, with
    the literals of those values."""
    pairs: list[tuple[str, str]] = []
    for line in text.splitlines():
        statement = (
            parse(line.strip()).body if line.strip().startswith("assert ") and parses(line.strip()) else []
        )
        test = statement[0].test if statement and isinstance(statement[0], ast.Assert) else None
        if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq):
            pairs.append((ast.unparse(test.left), ast.unparse(test.comparators[0])))
    with suppress(ValueError):  # lines that only look like a doctest
        pairs += [(each.source, each.want) for each in doctest.DocTestParser().get_examples(text)]
    found: dict[str, str] = {}
    for source, value in pairs:
        call = next(calls_in(source, signature), None)
        if call is not None and parses(source.strip()) and call == ast.unparse(parse(source.strip())):
            with suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                found.setdefault(call, spelled(ast.literal_eval(value.strip())))
    return found


def _arguments(signature: str) -> ast.arguments:
    function = parse(f"{signature}\n    pass\n").body[0]
    assert isinstance(function, ast.FunctionDef)
    return function.args


def _call_at(text: str) -> ast.Call | None:
    """The call that the text begins with."""
    for end in (place.end() for place in re.finditer(r"\)", text)):
        if parses(text[:end]):
            body = parse(text[:end]).body
            value = body[0].value if len(body) == 1 and isinstance(body[0], ast.Expr) else None
            return value if isinstance(value, ast.Call) else None
    return None


def _literal(call: ast.Call) -> bool:
    for node in [*call.args, *(keyword.value for keyword in call.keywords)]:
        try:
            ast.literal_eval(node)
        except (ValueError, TypeError, MemoryError, RecursionError):  # TypeError: a set of lists
            return False
    return True


def _fits(call: ast.Call, arguments: ast.arguments) -> bool:
    positional = [each.arg for each in (*arguments.posonlyargs, *arguments.args)]
    named = {keyword.arg for keyword in call.keywords}
    if None in named or (len(call.args) > len(positional) and not arguments.vararg):
        return False
    given = set(positional[: len(call.args)])
    known = {*(each.arg for each in (*arguments.args, *arguments.kwonlyargs))}
    if named & given or (named - known and not arguments.kwarg):
        return False
    required = set(positional[: len(positional) - len(arguments.defaults)])
    pairs = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    required |= {each.arg for each, default in pairs if default is None}
    return required <= given | {each for each in named if each}


def responses(
    sampler: Sampler, prompts: Sequence[Prompt], decoding: Decoding, n: int, path: Path, *, what: str
) -> list[list[str]]:
    """`n` answers to each prompt, those of one prompt together; each is appended to `path` as it comes, so
    that a run that was stopped goes on.

    Raises SamplerError when the source fails, ValueError on a prompt this model can't be asked, BusyError
    where another process writes into `path`.
    """
    sampler.check(prompts)
    asks = [Ask(prompt, index) for prompt in prompts for index in range(n)]
    keys = [_key(ask, sampler, decoding) for ask in asks]
    with Journal(path, _flaw) as journal:
        done = {at for at, key in enumerate(keys) if key in journal.records}
        answers = sampler.answer(asks, decoding, done)
        try:
            for at, response in tqdm(
                answers, desc=f"asking for {what}", unit="answer", total=len(asks), initial=len(done)
            ):
                journal.add(
                    {"key": keys[at], "index": asks[at].index, "response": response.text,
                     "finish": response.finish, "tokens": response.tokens, "model": sampler.model,
                     "model_digest": sampler.digest, "decoding": asdict(decoding)}
                )  # fmt: skip
        except SamplerError as error:
            raise SamplerError(f"{error} (what was answered is kept in {path})") from error
        texts = [str(journal.records[key]["response"]) for key in keys]
    return [texts[start : start + n] for start in range(0, len(texts), n)]


def _flaw(record: Record) -> str:
    return "" if isinstance(record.get("response"), str) else "no answer"


def _key(ask: Ask, sampler: Sampler, decoding: Decoding) -> str:
    content = [
        asdict(ask.prompt), ask.index, sampler.model, sampler.digest, sampler.provenance(), asdict(decoding),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode("ascii")).hexdigest()[:32]

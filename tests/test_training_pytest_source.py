"""A repository's tests as problems: what is found, what is left out and why, that the judge agrees."""

import json
import math
import os
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from failing_sandbox import Failing

from rrtf_serve.problems.user_file import load_user_file
from rrtf_serve.sandbox.jobs import FunctionJob
from rrtf_serve.sandbox.judge import Sandbox
from rrtf_serve.sandbox.limits import Limits
from rrtf_serve.sandbox.verdict import Verdict
from training import cli, pytest_stand_in
from training.problem_files import write_lines
from training.pytest_source import Imported, import_pytest, licence_of
from training.repository import LARGEST, Member, Unsupported, read_repository


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(workers=1) as sandbox:
        yield sandbox


FILES = {
    "pyproject.toml": '[project]\nname = "shop"\nlicense = "MIT"\n',
    "src/shop/__init__.py": "from shop.prices import total, discount as rebate\nfrom .words import *\n",
    "src/shop/prices.py": '''
        """Prices."""
        import math
        from collections.abc import Iterable

        from shop.rounding import rounded, UNIT as unit

        RATES = {"a": 0.5}
        RATES["b"] = 0.25
        UNUSED = 3


        def register(name, rate):
            RATES[name] = rate


        register("c", 0.1)


        class Odd(ValueError):
            pass


        def total(prices: Iterable[float], rate: str = "") -> float:
            """Sum of prices.

            >>> total([1, 2])
            3
            """
            # A comment that belongs to the body.
            found = math.fsum(prices)
            if rate:
                found = discount(found, rate)
            return rounded(found)


        def discount(price, rate):
            """The price after a discount; Odd where there is none of that name."""
            if rate not in RATES:
                raise Odd(f"no {rate}")
            return price * (1 - RATES[rate]) * unit


        def bare(x):
            return x


        def weak(x):
            """Something that its test does not look at."""
            return x + 1


        def broken(x):
            """Its test fails."""
            return x


        async def slow(x):
            """Later."""
            return x


        def lonely(x):
            """Nobody tests it."""
            return x
    ''',
    "src/shop/rounding.py": '''
        UNIT = 1


        def rounded(x):
            return round(x, 2)
    ''',
    "src/shop/words.py": '''
        def shout(text, times=1):
            """Louder."""
            return text.upper() + "!" * times
    ''',
    "tests/test_prices.py": '''
        import math
        import shop
        import shop.prices as p
        import pytest
        from shop import rebate
        from shop.prices import Odd, bare, broken, slow, total, weak

        CASES = [([], 0), pytest.param([1, 2], 3, id="two"), ([0.1, 0.2], 0.3)]


        @pytest.fixture
        def prices():
            return [1, 2]


        @pytest.fixture()
        def more(prices):
            return prices + [3]


        @pytest.fixture
        def odd():
            yield 1


        @pytest.mark.parametrize("values, expected", CASES + [((1,), 1)])
        @pytest.mark.parametrize("rate", [""])
        def test_total(values, expected, rate):
            assert total(values, rate) == pytest.approx(expected)


        def test_total_of_fixtures(prices, more):
            assert shop.total(prices) == 3, "three"
            assert p.total(more) == 6 and math.isclose(6, 6)


        def test_total_fails_here():
            assert total([1]) == 2


        def test_total_is_printed(capsys):
            assert total([1]) == 1


        @pytest.mark.skip(reason="no")
        def test_total_skipped():
            assert total([1]) == 1


        def test_total_odd(odd):
            assert total([odd]) == 1


        def test_discount():
            assert rebate(2, "a") == 1
            assert rebate(4, "b") == 3
            with pytest.raises(Odd, match="no x"):
                rebate(1, "x")


        def test_discount_registered():
            assert p.discount(1, "c") == pytest.approx(0.9)


        def test_bare():
            assert bare(1) == 1


        def test_weak():
            weak(1)
            assert 1


        def test_broken():
            assert broken(1) == 2


        async def test_slow():
            assert slow(1)


        def test_nothing():
            assert 1 + 1 == 2


        def test_both():
            assert bare(1) == weak(0)
    ''',
    "tests/test_words.py": '''
        import unittest
        from shop import shout


        class TestShout:
            def setup_method(self):
                self.text = "a"

            def test_once(self):
                assert shout(self.text) == "A!"

            @pytest.mark.parametrize("n", [1, 2])
            def test_often(self, n):
                assert shout("a", n).endswith("!" * n)


        class ShoutCase(unittest.TestCase):
            def setUp(self):
                self.word = "b"

            def test_shout(self):
                self.assertEqual(shout(self.word), "B!")
                with self.assertRaises(AttributeError):
                    shout(1)

            def test_shout_wrong(self):
                self.assertEqual(shout(self.word), "b")
    ''',
    "tests/test_broken_file.py": "def (:\n",
}  # fmt: skip


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write(tmp_path_factory.mktemp("made") / "shop", FILES)


@pytest.fixture(scope="module")
def imported(repository: Path, sandbox: Sandbox) -> Imported:
    return import_pytest(repository, sandbox)


def _record(imported: Imported, name: str) -> dict[str, Any]:
    return next(each for each in imported.records if each["entry_point"] == name)


def test_tested_functions_become_problems(imported: Imported) -> None:
    assert [each["task_id"] for each in imported.records] == [
        "shop/shop.prices.discount", "shop/shop.prices.total", "shop/shop.words.shout",
    ]  # fmt: skip
    assert {each["licence"] for each in imported.records} == {"MIT"}


def test_a_prompt_holds_what_the_function_needs_and_ends_with_its_docstring(imported: Imported) -> None:
    record = _record(imported, "total")
    prompt = record["prompt"]
    assert prompt.endswith('    >>> total([1, 2])\n    3\n    """\n')
    assert record["canonical_solution"].startswith("    # A comment that belongs to the body.\n    found =")
    for needed in ("import math", "from collections.abc import Iterable", "def rounded", "def discount",
                   'RATES["b"] = 0.25', 'register("c", 0.1)', "class Odd", "unit = UNIT"):  # fmt: skip
        assert needed in prompt
    assert "UNUSED" not in prompt
    assert "def bare" not in prompt
    assert prompt.index("UNIT = 1") < prompt.index("unit = UNIT") < prompt.index("def discount")


def test_one_set_of_parameters_is_one_check(imported: Imported) -> None:
    by = _record(imported, "total")["tests_by"]
    assert by["tests"] == ["tests/test_prices.py::test_total", "tests/test_prices.py::test_total_of_fixtures"]
    assert by["checks"] == 4 + 1
    assert by["caught"] == by["mutants"] == 1  # there is nothing in it that a small change would change
    by = _record(imported, "discount")["tests_by"]
    assert by["checks"] == 2
    assert 1 < by["caught"] <= by["mutants"]
    assert _record(imported, "shout")["tests_by"]["tests"] == [
        "tests/test_words.py::TestShout::test_once",
        "tests/test_words.py::TestShout::test_often",
        "tests/test_words.py::ShoutCase::test_shout",
    ]


def test_what_is_left_out_has_a_reason(imported: Imported) -> None:
    found = {each.what.rpartition("/")[2]: each.reason for each in imported.left_out}
    assert found == {
        "test_broken_file.py": "unreadable",
        "test_prices.py::test_total_fails_here": "fails in the sandbox",
        "test_prices.py::test_total_is_printed": "a fixture from elsewhere",
        "test_prices.py::test_total_skipped": "marked skip",
        "test_prices.py::test_total_odd": "a fixture that does more than return a value",
        "test_prices.py::test_nothing": "a test that names no top-level function",
        "test_prices.py::test_both": "a test of several functions",
        "test_words.py::ShoutCase::test_shout_wrong": "fails in the sandbox",
        "shop.prices.bare": "no docstring",
        "shop.prices.weak": "tests too weak",
        "shop.prices.broken": "its own tests fail in the sandbox",
        "shop.prices.slow": "an async function",
    }
    assert imported.functions == 5
    assert imported.tests == 18


def _judge(sandbox: Sandbox, problems: Path, name: str, body: str) -> Verdict:
    problem = next(e for e in load_user_file(problems).problems.values() if e.entry_point == name)
    tests: Any = problem.tests
    job = FunctionJob(problem.program(body), problem.entry_point, tests.code, tests.setup)
    return sandbox.judge(job, Limits(wall_s=20))


def test_the_written_file_tells_right_from_wrong(
    imported: Imported, sandbox: Sandbox, tmp_path: Path
) -> None:
    path = tmp_path / "problems.jsonl"
    write_lines(path, imported.records)
    assert _judge(sandbox, path, "total", "    return rounded(sum(prices))\n").passed
    wrong = _judge(sandbox, path, "total", "    return prices[0]\n")
    # Each check stands alone: the empty list raises, the list of one is right.
    assert [test.passed for test in wrong.tests] == [False, False, False, True, False]
    assert _judge(sandbox, path, "discount", "    return None\n").status.name == "RUNTIME_ERROR"
    unraised = _judge(sandbox, path, "discount", "    return price * (1 - RATES.get(rate, 0))\n")
    assert [test.passed for test in unraised.tests] == [False, True]
    assert _judge(sandbox, path, "shout", "    return text.upper() + '!'\n").status.name == "PARTIAL"


def test_names_are_resolved_through_packages(repository: Path) -> None:
    found = read_repository(repository)
    assert found.resolve("shop", "total") == Member("shop.prices", "total")
    assert found.resolve("shop", "rebate") == Member("shop.prices", "discount")
    assert found.resolve("shop", "shout") == Member("shop.words", "shout")
    assert found.resolve("shop", "words") == "shop.words"
    assert found.resolve("shop", "missing") is None
    assert found.resolve("json", "loads") is None


def _write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip("\n"))
    return root


def test_odd_packages(sandbox: Sandbox, tmp_path: Path) -> None:
    root = _write(
        tmp_path / "odd",
        {
            # A function of its module's name, annotations that are never read, one import in two modules.
            "odd/__init__.py": "from .odd import *\n",
            "odd/odd.py": '''
                from __future__ import annotations

                import typing as t
                from odd.even import helper

                if t.TYPE_CHECKING:
                    from decimal import Decimal


                def inner(x: Decimal):
                    return helper(x)


                def odd(x: Decimal) -> bool:
                    """Whether x is odd."""
                    return not inner(x)
            ''',
            "odd/even.py": '''
                from __future__ import annotations
                import typing as t
                from odd.third import step as advance


                def helper(x: t.Any) -> bool:
                    return advance(x) % 2 == 1


                def even(x):
                    """Whether x is even."""
                    return advance(x) % 2 == helper(1)
            ''',
            "odd/third.py": "def step(x):\n    return x + 1\n\n\ndef helper(x):\n    return x\n",
            "tests/test_odd.py": """
                from odd import odd
                from odd.odd import inner

                def test_odd():
                    assert odd(1) and odd(3) and not inner(3)
                    assert not odd(2)
            """,
            "tests/test_even.py": """
                from odd.even import even
                from odd.third import helper

                def test_even():
                    assert even(helper(2)) is False
            """,
        },
    )
    found = import_pytest(root, sandbox)
    assert [record["entry_point"] for record in found.records] == ["odd"]
    assert "advance = step" in found.records[0]["prompt"]
    assert found.records[0]["test"].startswith("from __future__ import annotations\n")
    assert [(each.what, each.reason) for each in found.left_out] == [
        ("tests/test_even.py::test_even", "two definitions of one name"),
        ("odd.even.even", "no test left"),
    ]


def test_a_folder_without_tests_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        read_repository(tmp_path / "none")
    (tmp_path / "a.py").write_text("x = 1\n")
    with pytest.raises(ValueError, match="holds no test_"):
        read_repository(tmp_path)


def test_what_is_no_source_file_of_the_repository_is_passed_over(tmp_path: Path) -> None:
    root = _write(
        tmp_path / "odd",
        {
            "m.py": "x = 1\n", "test_m.py": "def test_x():\n    pass\n", "folder.py/n.py": "y = 2\n",
            "large.py": "# " + "x" * LARGEST, "deep.py": "x = " + "-" * 100_000 + "1",
        },
    )  # fmt: skip
    (tmp_path / "outside.py").write_text("SECRET = 1\n")
    (root / "link.py").symlink_to(tmp_path / "outside.py")
    (root / "dead.py").symlink_to(tmp_path / "gone.py")
    (root / "marked.py").write_bytes(b"\xef\xbb\xbfz = 3\n")
    os.mkfifo(root / "pipe.py")
    found = read_repository(root)
    assert sorted(found.modules) == ["folder.py.n", "m", "marked"]
    outside = "a link to a place outside the repository"
    assert found.unreadable == {
        "dead.py": outside, "deep.py": "nested too deeply", "large.py": "larger than 4 MiB",
        "link.py": outside, "pipe.py": "not a file",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("test", "reason"),
    [
        ("def test_f():\n    assert f(1) == 2" + " + 0" * 600, "nested too deeply"),
        ("A = A + A\n@pytest.mark.parametrize('a', A)\ndef test_f(a):\n    f(a)", "nested too deeply"),
        ("@pytest.mark.parametrize(1, [1])\ndef test_f(a):\n    f(a)", "an odd parametrize"),
        (
            "@pytest.mark.parametrize('a', [pytest.param()])\ndef test_f(a):\n    f(a)",
            "parameters that are not written out",
        ),
        (
            "".join(f"@pytest.mark.parametrize('{name}', {[*range(40)]})\n" for name in "abc")
            + "def test_f(a):\n    f(a)",
            "too many sets of parameters",
        ),
    ],
)
def test_an_odd_test_is_left_out_and_ends_nothing(
    test: str, reason: str, sandbox: Sandbox, tmp_path: Path
) -> None:
    source = 'def f(x):\n    """Add one."""\n    return x + 1\n'
    tests = f"import pytest\nfrom m import f\n\n{test}\n"
    found = import_pytest(_write(tmp_path / "odd", {"m.py": source, "test_m.py": tests}), sandbox)
    assert ("test_m.py::test_f", reason) in {(each.what, each.reason) for each in found.left_out}


def test_what_a_module_does_as_a_programme_is_not_in_the_prompt(sandbox: Sandbox, tmp_path: Path) -> None:
    source = (
        'TABLE = {"a": 1}\n\ndef f(x):\n    """The value of x."""\n    return TABLE.get(x, 0)\n\n'
        'if __name__ == "__main__":\n    TABLE["a"] = 2\n'
    )
    tests = "from m import f\n\ndef test_f():\n    assert f('a') == 1\n    assert f('b') == 0\n"
    found = import_pytest(_write(tmp_path / "main", {"m.py": source, "test_m.py": tests}), sandbox)
    assert [record["prompt"].count("__main__") for record in found.records] == [0]


@pytest.mark.parametrize("word", ["return x + 1", "return x - 1"])  # the function, and one made out of it
def test_a_sandbox_that_fails_says_nothing_of_tests(word: str, sandbox: Sandbox, tmp_path: Path) -> None:
    source = 'def f(x):\n    """Add one."""\n    return x + 1\n'
    tests = "from m import f\n\ndef test_f():\n    assert f(1) == 2\n"
    root = _write(tmp_path / "plain", {"m.py": source, "test_m.py": tests})
    failing: Any = Failing(sandbox, word)
    found = import_pytest(root, failing)
    assert [(each.what, each.reason) for each in found.left_out] == [("m.f", "the sandbox failed")]
    assert failing.failed > 0
    assert len(import_pytest(root, sandbox).records) == 1


def test_licence_comes_from_the_metadata(tmp_path: Path) -> None:
    assert licence_of(tmp_path) is None
    (tmp_path / "pyproject.toml").write_text('license = {text = "BSD-3-Clause"}\n')
    assert licence_of(tmp_path) == "BSD-3-Clause"
    (tmp_path / "PKG-INFO").write_text("Name: x\nLicense-Expression: Apache-2.0\n")
    assert licence_of(tmp_path) == "Apache-2.0"


def test_unsupported_says_reason_and_detail() -> None:
    assert str(Unsupported("an async test")) == "an async test"
    assert str(Unsupported("marked skip", "why")) == "marked skip: why"


@pytest.mark.parametrize(
    ("got", "expected", "options"),
    [
        (1.0, 1.0 + 5e-7, {}), (1.0, 1.1, {}), (0.0, 1e-13, {}), (0.0, 1e-11, {}), (1.0, 1.05, {"rel": 0.1}),
        (1.0, 1.05, {"abs": 0.01}), (1.0, 1.05, {"abs": 0.1}), (math.nan, math.nan, {}),
        (math.nan, math.nan, {"nan_ok": True}), (math.inf, math.inf, {}), (math.inf, -math.inf, {}),
        ([1.0, 2.0], [1.0, 2.0 + 1e-9], {}), ([1.0], [1.0, 2.0], {}), ({"a": 0.3}, {"a": 0.1 + 0.2}, {}),
        ({"a": 1}, {"b": 1}, {}), ("a", "a", {}), (None, 1.0, {}), (1 + 1j, 1 + 1j + 1e-9, {}),
        ((1.0, 2.0), (1.0, 2.0), {}), (1e9, 1e9 + 1, {}), (True, 1, {}),
    ],
)  # fmt: skip
def test_the_stand_in_is_as_near_as_pytest(got: Any, expected: Any, options: dict[str, Any]) -> None:
    theirs = got == pytest.approx(expected, **options)
    assert (got == pytest_stand_in.Approx(expected, **options)) is theirs


def test_the_stand_in_raises_as_pytest_does() -> None:
    with pytest_stand_in.pytest.raises((KeyError, ValueError), match="^no") as caught:
        raise ValueError("no way")
    assert str(caught.value) == "no way"
    assert pytest_stand_in.pytest.raises(ValueError, int, "x").type is ValueError
    with pytest.raises(AssertionError, match="did not raise"), pytest_stand_in.pytest.raises(ValueError):
        pass
    with pytest.raises(AssertionError, match="does not match"):
        pytest_stand_in.pytest.raises(ValueError, int, "x", match="else") and int("x")
    with pytest.raises(KeyError), pytest_stand_in.pytest.raises(ValueError):
        raise KeyError("k")


def test_the_command_writes_problems_and_what_it_left_out(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = tmp_path / "words"
    (words / "tests").mkdir(parents=True)
    (words / "words.py").write_text((repository / "src/shop/words.py").read_text())
    (words / "tests/test_words.py").write_text(
        "from words import shout\n\ndef test_it():\n    assert shout('a') == 'A!'\n"
    )
    output = tmp_path / "problems.jsonl"
    arguments = ["import", "--pytest", str(words), "-o", str(output), "--workers", "1", "--json"]
    assert cli.main([*arguments, "--licence", "0BSD"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["problems"] == report["tests_used"] == 1
    (problem,) = load_user_file(output).problems
    assert problem == "words/words.shout"
    assert json.loads(output.read_text())["licence"] == "0BSD"
    assert (tmp_path / "problems.left-out.jsonl").read_text() == ""
    (words / "tests/test_words.py").write_text("def test_it():\n    assert 1\n")
    output.unlink()
    assert cli.main(arguments) == 1
    assert not output.exists()
    assert cli.main(["import", "--pytest", str(tmp_path / "none"), "-o", str(output)]) == 2

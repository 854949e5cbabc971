"""Braces that count and braces that are text; and MultiPL-E answers with either, through the real sandbox."""

from collections.abc import Iterator

import pytest

from rrtf_serve.problems.braces import closes_all
from rrtf_serve.problems.jobs import JobBuilder, check_languages
from rrtf_serve.problems.problem import Problem, ProgramTests
from rrtf_serve.sandbox.judge import Sandbox
from rrtf_serve.sandbox.languages import available
from rrtf_serve.sandbox.limits import SandboxUnavailable

OPEN_CPP = [
    "int f() { // }\n",
    "int f() { // \\\n }\n",
    "int f() { /* } */",
    "int f() { char c = '}';\n",
    'int f() { auto s = "\\"}";\n',
    'int f() { auto s = R"x(})")x";',
    "int f() { auto c = u8'}'; auto d = L'\\'';",
    "int f() { int x = 1'000; char c = '}';",
    "int f() { int x = 0x1'F; char c = '\"'; char d = '}';",
    "int f() { if (x) { y; }",
]
OPEN_BASH = [
    "f() {\n  # it's }\n",
    'f() {\n  echo "}"\n',
    "f() {\n  echo '}'\n",
    "f() {\n  echo $'it\\'s }'\n",
    "f() {\n  echo \\}\n",
    "f() {\n  echo ${x:-}}\n",
    'f() {\n  echo "$(echo "}")"\n',
    "f() {\n  for i in {1..3}; do echo $i; done\n",
    "f() {\n  (( x << 2 )); echo $((1 << 3))\n",
    "f() {\n  cat <<EOF\n}}}\nEOF\n",
    "f() {\n  cat <<-'E F'\n\t}\n\tE F\n",
    "f() {\n  awk '{print $1} }' <<< \"$1\"\n",
    'f() {\n  case $1 in\n    a) echo "}";;\n  esac\n',
    "f() {\n  [[ $c == { ]] && echo }\n",
    "f() {\n  x=$(( ${#a[@]} - 1 ))\n  # }\n",
    "f() {\n  echo a#b }\n",
    "function f {\n  echo $# }\n",
    "f() {\n  while read -r l; do :; done < <(echo }\n)\n",
    "f() {\n  if true; then { echo; }; fi\n",
    "f() {\n  [[ $1 =~ ^[a-z]{3}$ ]]\n",
]


@pytest.mark.parametrize(
    ("language", "program"),
    [("cpp", each) for each in OPEN_CPP] + [("bash", each) for each in OPEN_BASH],
)
def test_an_open_function_is_open_until_its_brace(language: str, program: str) -> None:
    assert not closes_all(program, language)
    # An opening brace that is text changes nothing either.
    assert closes_all(program.replace("'}'", "'{'") + "\n}\n", language)


@pytest.mark.parametrize(
    "program",
    ["f() { echo a; }", "f() { g; { h; } }", "f()\n{\n  if a; then b; fi }", "f() { (a) }", "f() (a)"],
)
def test_bash_functions_that_end_on_one_line(program: str) -> None:
    assert closes_all(program, "bash")


def test_other_languages_are_counted() -> None:
    assert closes_all("function f() { }", "javascript")
    assert not closes_all("function f() { // }}", "javascript")


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    try:
        opened = Sandbox(workers=1)
    except SandboxUnavailable as error:
        pytest.skip(f"no sandbox here: {error}")
    with opened:
        yield opened


BASH = Problem(
    "t/bash", "# $1 is a word\nf() {\n", "f", ProgramTests("}\n[[ $(f a) = a ]] || exit 1\n"), language="bash"
)
CPP = Problem(
    "t/cpp", "#include <cassert>\nint f(int n) {\n", "f",
    ProgramTests("}\nint main() {\n    assert(f(1) == 1);\n}\n"), language="cpp",
)  # fmt: skip


@pytest.mark.parametrize(
    ("problem", "completion"),
    [
        (BASH, '    echo "$1"  # that is all }\n'),
        (BASH, "    local brace='{'\n    echo \"$1\"\n}\n"),
        (CPP, "    // ends with }\n    return n;\n"),
        (CPP, "    char c = '{'; (void)c;\n    return n;\n}\n"),
    ],
)
def test_right_answers_with_braces_in_text_pass(sandbox: Sandbox, problem: Problem, completion: str) -> None:
    if not available(problem.language):
        pytest.skip(f"no programmes for {problem.language} here")
    verdict = sandbox.judge(JobBuilder().build(problem, problem.program(completion)))
    assert verdict.passed, verdict.message


def test_a_missing_compiler_is_named_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match=r"'cpp' needs g\+\+"):
        check_languages([CPP])
    check_languages([Problem("t", "", "f")])

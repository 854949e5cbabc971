"""Chat templates: untrusted jinja2 programs that come with a model, run in a sandbox with bounds.

The dialect is that of transformers' apply_chat_template
(https://huggingface.co/docs/transformers/chat_templating): trim_blocks, lstrip_blocks, loop controls,
`raise_exception`, `strftime_now`, an unescaped `tojson` and the `generation` tag. jinja2's
ImmutableSandboxedEnvironment keeps a template away from Python; it does not keep it from eating all time and
memory. So everything that can make work or grow a value is counted:

- loops, calls, filters and comparisons are steps, bounded in number and by the clock;
- a value made by an operator, a literal, a call or a filter is measured, and refused before it is made where
  it could grow past its parts (repetition, replace, join, widths in formats);
- printed text is counted as it is printed, also into macros and block assignments;
- only filters and methods whose growth is known are there at all.
"""

from __future__ import annotations

import functools
import json
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn, cast

from jinja2 import TemplateError, nodes
from jinja2.environment import Template
from jinja2.exceptions import SecurityError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import BlockReference, Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner, Namespace
from jinja2.visitor import NodeTransformer

from rrtf_serve.models.template_bounds import (
    BUDGET,
    Budget,
    check_replace,
    check_widths,
    concatenated,
    each,
    emitted,
    formatted,
    guard_format,
    guard_indent,
    guard_join,
    guard_replace,
    joined,
    limit,
    measured,
    raised,
    repeated,
)

MAX_SOURCE = (
    100_000  # characters of a template: published ones stay far below; compiling this many takes seconds
)

# fmt: off
_FILTERS = (
    "abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "format",
    "indent", "int", "items", "join", "last", "length", "list", "lower", "map", "max", "min", "reject",
    "rejectattr", "replace", "reverse", "safe", "select", "selectattr", "sort", "string", "title",
    "tojson", "trim", "unique", "upper", "wordcount",
)
_STRING_METHODS = (
    "capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha", "isascii",
    "isdecimal", "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper", "join", "lower",
    "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex", "rpartition",
    "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase", "title", "upper",
)
# fmt: on
_METHODS: dict[type, frozenset[str]] = {
    str: frozenset(_STRING_METHODS),
    dict: frozenset(("copy", "get", "items", "keys", "values")),
    list: frozenset(("copy", "count", "index")),
    tuple: frozenset(("count", "index")),
}
_OPEN_TYPES = (LoopContext, Namespace, Cycler, Joiner, Macro)


class ChatTemplateError(ValueError):
    """The model's chat template does not compile, failed, refused the conversation or went past a bound."""


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        # No constant folding: it would run filters at compile time, outside any budget.
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=[_Generation, loopcontrols]
        )
        self.binop_table.update({"+": operator.add, "*": repeated, "**": raised, "%": formatted})
        known = {**self.filters, "tojson": _tojson}
        self.filters = {name: _counted(known[name], _GUARDS.get(name)) for name in _FILTERS}
        self.filters.update(_each=each, _emit=emitted, _concat=concatenated, _measured=measured)
        del self.globals["lipsum"]
        self.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if not super().is_safe_attribute(obj, attr, value):
            return False
        for kind, allowed in _METHODS.items():
            if isinstance(obj, kind):
                return attr in allowed
        return isinstance(obj, _OPEN_TYPES)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:  # noqa: ARG002  # jinja2's own signature
        return None  # so that is_safe_attribute sees str.format and refuses it: its widths can't be bounded

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
            limit(len(left) + len(right))
        return measured(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805  # jinja2's own
        budget = BUDGET.get()
        budget.step()
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(__obj, Macro | BlockReference):
            budget.emit(budget.template_text)
        elif isinstance(owner, str) and name == "replace" and len(args) >= 2:
            check_replace(owner, str(args[0]), str(args[1]))
        elif isinstance(owner, str) and name == "join" and args:
            args = (joined(args[0], owner),)
        return measured(super().call(__context, __obj, *args, **kwargs))


class _Generation(Extension):
    """`{% generation %}` marks the assistant's text for training; here it is only text."""

    tags = {"generation"}  # noqa: RUF012  # jinja2 reads a plain set

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Counting(NodeTransformer):
    """Rewrites a parsed template so that loops, literals, `~` and output go through the counters above."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        if node.recursive:
            raise TemplateSyntaxError("recursive loops are not supported", node.lineno)
        text = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "_each", nodes.Const(text))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), "_concat")

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, "_measured")

    def visit_Output(self, node: nodes.Output) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.nodes = [
            _filtered(part, "_emit") if not isinstance(part, nodes.TemplateData) else part
            for part in node.nodes
        ]
        return node

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, "_measured")

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, "_measured")

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, "_measured") if node.ctx == "load" else node

    def _refuse(self, node: nodes.Node) -> NoReturn:
        raise TemplateSyntaxError("a chat template stands alone: no include, import or extends", node.lineno)

    visit_Include = visit_Import = visit_FromImport = visit_Extends = _refuse  # noqa: N815


def _filtered(node: nodes.Node, name: str, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(cast("nodes.Expr", node), name, list(args), [], None, None, lineno=node.lineno)


def _counted(function: Callable[..., Any], guard: Callable[..., Any] | None) -> Callable[..., Any]:
    """A filter as a step with a measured result; a lazy one is run to its end."""
    skipped = (
        1 if hasattr(function, "jinja_pass_arg") else 0
    )  # the context or environment that jinja2 passes first

    @functools.wraps(function)  # keeps jinja2's mark for filters that want the context
    def run(*args: Any, **kwargs: Any) -> Any:
        BUDGET.get().step()
        if guard is not None:
            args = (*args[:skipped], *guard(*args[skipped:], **kwargs))
        result = function(*args, **kwargs)
        return measured(list(result) if isinstance(result, Iterator) else result)

    return run


_GUARDS: dict[str, Callable[..., tuple[Any, ...]]] = {
    "replace": guard_replace,
    "join": guard_join,
    "indent": guard_indent,
    "format": guard_format,
}


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    if (indent is not None and not 0 <= int(indent) <= 16) or sum(map(len, separators or ())) > 16:
        raise SecurityError("tojson with an indent or separators of more than 16 characters")
    return json.dumps(
        measured(value), ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(str(message))


def _strftime_now(pattern: str) -> str:
    check_widths(pattern)
    return datetime.now().strftime(pattern)


class ChatTemplate:
    """A compiled template; `render` may be called from several threads."""

    def __init__(self, source: str) -> None:
        """Raises ChatTemplateError on a template that does not compile or is too long."""
        if len(source) > MAX_SOURCE:
            raise ChatTemplateError(
                f"the model's chat template has {len(source):,} characters; at most {MAX_SOURCE:,} are read"
            )
        environment = _Sandbox()
        try:
            tree = environment.parse(source)
            self._text = sum(len(data.data) for data in tree.find_all(nodes.TemplateData))
            _Counting().visit(tree)
            tree.set_environment(environment)
            code = environment.compile(tree)
            self._template = Template.from_code(environment, code, environment.make_globals(None))
        except (TemplateError, RecursionError, SyntaxError, MemoryError) as error:
            raise ChatTemplateError(
                f"the model's chat template does not compile: {_reason(error)}"
            ) from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        bos_token: str = "",
        eos_token: str = "",
        add_generation_prompt: bool = True,
    ) -> str:
        """The conversation as text. Raises ChatTemplateError, in the template's words where it refuses."""
        token = BUDGET.set(Budget(self._text))
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                bos_token=bos_token,
                eos_token=eos_token,
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
            )
        except (
            Exception
        ) as error:  # a template is a program and can fail in any way; the cause stays attached
            raise ChatTemplateError(f"the model's chat template failed: {_reason(error)}") from error
        finally:
            BUDGET.reset(token)


def _reason(error: BaseException) -> str:
    return f"{error}" if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"

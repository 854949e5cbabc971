# ruff: noqa: E501  # a template reads best unbroken
from __future__ import annotations

import subprocess
import sys
import threading
import time
import tracemalloc
from datetime import datetime

import pytest

from rrtf_serve.models import template_bounds
from rrtf_serve.models.templates import MAX_SOURCE, ChatTemplate, ChatTemplateError

MESSAGES = [
    {"role": "system", "content": "Be brief & <exact>."},
    {"role": "user", "content": "Hi\n  there 好"},
    {"role": "assistant", "content": "yo"},
    {"role": "user", "content": "x" * 1000},
]

# The constructs of published templates: ChatML, Llama 2 and 3, Mistral, DeepSeek, Granite and others.
PUBLISHED_SHAPES = [
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] }}{% endfor %}",
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system = messages[0].content %}"
    "{% else %}{% set loop_messages = messages %}{% endif %}{% for message in loop_messages %}"
    "{% if loop.index0 == 0 and system is defined %}{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + "
    "message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    "{%- set ns = namespace(found=false, text='') -%}\n{%- for message in messages -%}\n    {%- if message.role == 'user' -%}\n"
    "        {%- set ns.found = true -%}\n        {%- set ns.text = ns.text ~ loop.index ~ message.content | trim -%}\n"
    "    {%- endif -%}\n{%- endfor -%}\n{{ ns.text }}{{ ns.found }}\n",
    "{% macro show(role, text='none') %}[{{ role|upper }}:{{ text|length }}]{% endmacro %}"
    "{% for m in messages if m.role != 'system' %}{{ show(m.role, m.content) }}{{ show('x') }}"
    "{% if not loop.last %},{% endif %}{{ loop.length }}{{ loop.revindex }}{% endfor %}",
    "{{ messages | map(attribute='role') | join(', ') }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }}"
    " {{ messages | rejectattr('role', 'in', ['user', 'system']) | map(attribute='content') | first }}",
    "{{ messages | tojson }}\n{{ messages[0] | tojson(indent=2) }}\n{{ {'b': 1, 'a': [true, none]} | tojson(sort_keys=true) }}",
    "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{% if m.role == 'system' %}{% continue %}{% endif %}"
    "{{ m.content.split('\n')[-1].strip() }}{% endfor %}",
    "{% generation %}{{ messages[2].content }}{% endgeneration %}|{% set x %}a{{ messages|length }}{% endset %}{{ x }}",
    "{{ 'abc'.replace('b', 'xx') }}{{ 'a,b'.split(',')|join('-') }}{{ ['a']*3 }}{{ '%s-%02d' % ('x', 3) }}{{ 7 // 2 }}{{ 2**8 }}",
    "{{ 'a\nb'|indent(4) }}{{ 'a\nb'|indent(2, true) }}{{ ('x'|replace('x', 'yy'))|title }}{{ tools is none }}{{ nothing is defined }}"
    "{{ messages[0].tool_calls is defined }}{{ nothing | default('d') }}{{ messages[0].items()|list|length }}"
    "{{ messages[0].get('role') }}{% for k, v in {'z': 1, 'y': 2}|dictsort %}{{ k }}{{ v }}{% endfor %}",
    "{% if add_generation_prompt %}{{ 'A:' }}{% endif %}\n   {% if true %}\n  kept\n   {% endif %}\n",
    # Tools in the system message, answers of tools in runs, and calls as JSON
    "{%- set tools = [{'type': 'function', 'function': {'name': 'add', 'parameters': {'a': {'type': 'string', 'enum': ['<', none]}}}}] %}\n"
    "{%- if tools %}\n    {{- '<|im_start|>system\n' }}\n    {%- if messages[0]['role'] == 'system' %}\n        {{- messages[0]['content'] }}\n"
    '    {%- endif %}\n    {{- "\n\n# Tools\n<tools>" }}\n    {%- for tool in tools %}\n        {{- "\n" }}\n        {{- tool | tojson }}\n'
    "    {%- endfor %}\n    {{- '\n</tools>{\"name\": <name>}' }}\n{%- endif %}\n{%- for message in messages %}\n"
    "    {%- if (message.role == 'user') or (message.role == 'system' and not loop.first) or (message.role == 'assistant' and not message.tool_calls) %}\n"
    "        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}\n"
    "    {%- elif message.role == 'tool' and (loop.index0 == 0 or messages[loop.index0 - 1].role != 'tool') %}\n"
    "        {{- message.content }}\n    {%- endif %}\n"
    "    {%- for call in [{'name': 'add', 'arguments': {'a': message.content}}] %}{{ call.arguments | tojson }}{{ call.arguments | tojson | safe }}{% endfor %}\n"
    "{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\n' }}\n{%- endif %}\n",
    # A default system message, headers, and today's date
    "{{- bos_token }}{%- set date = strftime_now('%d %b %Y') if strftime_now is defined else '26 Jul 2024' %}"
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content']|trim %}{%- set messages = messages[1:] %}"
    "{%- else %}{%- set system = '' %}{%- endif %}{{- '<|start_header_id|>system<|end_header_id|>\n\nToday: ' + date[:6] + '\n' + system }}"
    "{%- for message in messages %}{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{%- endfor %}",
    # Thoughts are taken out of earlier answers; the last question is searched from the end
    "{%- set ns = namespace(last=messages|length - 1, searching=true) %}{%- for message in messages[::-1] %}"
    "{%- set index = (messages|length - 1) - loop.index0 %}{%- if ns.searching and message.role == 'user' and message.content is string "
    "and not (message.content.startswith('<r>') and message.content.endswith('</r>')) %}{%- set ns.searching = false %}{%- set ns.last = index %}"
    "{%- endif %}{%- endfor %}{{ ns.last }}{%- for message in messages %}{%- set content = message.content %}{%- if '</think>' in content %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1] %}"
    "{{ thought }}{%- endif %}{{ content.replace('yo', 'you').rsplit(' ', 1)|join('|') }}{{ content[:20] ~ content[-5:] }}{{ content.splitlines()|length }}"
    "{%- endfor %}",
    "{% for i in range(3) %}{% for j in range(i) %}{{ i }}{{ j }}{{ loop.first }}{% endfor %}{% else %}none{% endfor %}",
]


LONG_MESSAGES = [
    *MESSAGES[:2],
    {"role": "assistant", "content": "<think>\nwhy\n</think>\n\n" + 'a "b" é\n' * 62_500},
    {"role": "user", "content": "ok"},
]


@pytest.mark.parametrize("messages", [MESSAGES, LONG_MESSAGES], ids=["short", "long"])
@pytest.mark.parametrize("source", PUBLISHED_SHAPES)
@pytest.mark.filterwarnings("ignore")  # transformers' import
def test_renders_as_transformers_does(source: str, messages: list[dict[str, str]]) -> None:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    expected = _compile_jinja_template(source).render(
        messages=messages,
        tools=None,
        documents=None,
        add_generation_prompt=True,
        bos_token="<s>",
        eos_token="</s>",
    )
    # compared first: a failed assert would take minutes to show how two long texts differ
    same = ChatTemplate(source).render(messages, bos_token="<s>", eos_token="</s>") == expected
    assert same


GROWTH = "{%% set ns = namespace(s=%s) %%}{%% for i in range(60) %%}%s{%% endfor %%}{{ ns.s }}"
HOSTILE = {
    "long range": "{% for i in range(10**9) %}{% endfor %}",
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "hidden loop": "{% for i in range(99999) %}{{ range(99999)|list|length }}{% endfor %}",
    "slow calls": "{% for i in range(99999) %}{{ range(99999)|max }}{% endfor %}",
    "recursive macro": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(50) }}",
    "endless macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "recursive loop": "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "repetition": "{{ 'a' * 10**10 }}",
    "list repetition": "{{ ([1] * 10**9)|length }}",
    "doubling by ~": GROWTH % ("'aa'", "{% set ns.s = ns.s ~ ns.s %}"),
    "doubling by +": GROWTH % ("'aa'", "{% set ns.s = ns.s + ns.s %}"),
    "doubling lists": GROWTH % ("[1]", "{% set ns.s = ns.s + ns.s %}"),
    "doubling by block": GROWTH % ("'aa'", "{% set s %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = s %}"),
    "doubling by macro": GROWTH
    % ("'aa'", "{% macro m() %}{{ ns.s }}{{ ns.s }}{% endmacro %}{% set ns.s = m() %}"),
    "doubling by join": GROWTH % ("'aa'", "{% set ns.s = [ns.s, ns.s]|join %}"),
    "doubling by method": GROWTH % ("'aa'", "{% set ns.s = ns.s.replace('a', 'aa') %}"),
    "doubling by filter": GROWTH % ("'aa'", "{% set ns.s = ns.s|replace('a', 'aa') %}"),
    "doubling by str.join": GROWTH % ("'aa'", "{% set ns.s = ns.s.join(['', ns.s, '']) %}"),
    "doubling by format": GROWTH % ("'aa'", "{% set ns.s = '%s%s' % (ns.s, ns.s) %}"),
    "nesting": GROWTH % ("[1]", "{% set ns.s = [ns.s, ns.s] %}"),
    "nesting tuples": GROWTH % ("[1]", "{% set ns.s = (ns.s, ns.s) %}"),
    "nesting dicts": GROWTH % ("{}", "{% set ns.s = {1: ns.s, 2: ns.s} %}"),
    "nesting by call": GROWTH % ("{}", "{% set ns.s = dict(a=ns.s, b=ns.s) %}"),
    "squaring": GROWTH % ("2", "{% set ns.s = ns.s * ns.s %}"),
    "power": "{{ 10 ** (10 ** 10) }}",
    "big join": "{{ range(99999)|list|join('x' * 9999) }}",
    "named format": "{{ ('%(a)s' * 100000) % {'a': 'x' * 1000000} }}",
    "format width": "{{ '%9999999999d' % 1 }}",
    "format width from value": "{{ '%*d' % (10**10, 1) }}",
    "format filter": "{{ '%99999999s'|format(1) }}",
    "str.format": "{{ '{:>9999999999}'.format(1) }}",
    "ljust": "{{ 'a'.ljust(10**10) }}",
    "center": "{{ 'a'|center(10**10) }}",
    "indent": "{{ 'a\n'|indent(10**10) }}",
    "json indent": "{{ [1, 2]|tojson(indent=10**9) }}",
    "batch": "{{ [1]|batch(10**10, 'x')|list }}",
    "round": "{{ 1|round(10**9, 'ceil') }}",
    "date width": "{{ strftime_now('%9999999999d') }}",
    "constant text": "{% for i in range(99999) %}" + "z" * 1000 + "{% endfor %}",
    "captured constant text": "{% set x %}{% for i in range(99999) %}"
    + "z" * 1000
    + "{% endfor %}{% endset %}",
    "macro's constant text": "{% macro m() %}"
    + "z" * 9999
    + "{% endmacro %}{% for i in range(99999) %}{% set x = m() %}"
    "{% endfor %}",
    "block's constant text": "{% block b %}"
    + "z" * 9999
    + "{% endblock %}{% for i in range(99999) %}{% set x = self.b() %}"
    "{% endfor %}",
    "block filter": "{% filter replace('a', 'b' * 9000000) %}a{% endfilter %}",
    "bytes": "{{ (1).to_bytes(10**10, 'big') }}",
    "lipsum": "{{ lipsum(n=10**9) }}",
    "deep parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "many comparisons": "{% set s = 'a' * 7999999 %}{{ "
    + " or ".join(["(s + 'b') == (s + 'c')"] * 110)
    + " }}",
    "autoescape": "{% autoescape true %}{{ ('\"' * 999999)|safe }}{% endautoescape %}",
    "too long": "x" * (MAX_SOURCE + 1),
}
# One operation, or few, that would take minutes or gigabytes while no clock is read.
SINGLE_OPERATIONS = {
    "modulus of long integers": "{% set a=('f'*1999999)|int(0,16) %}{% set b=('f'*999999)|int(0,16) %}{{ 1 if a%b else 2 }}",
    "quotient of long integers": "{% set a=('f'*1999999)|int(0,16) %}{% set b=('f'*999999)|int(0,16) %}{{ 1 if a//b else 2 }}",
    "integer from a float": "{{ 1e300|int }}",
    "integer literal": "{{ 0x" + "f" * 90000 + " // 3 }}",
    "integer literal past Python's": "{{ " + "9" * 5000 + " }}",
    "integers that grow": "{% set ns = namespace(s=2**40) %}{% for i in range(60) %}{% set ns.s = ns.s - -ns.s %}{% endfor %}{{ ns.s }}",
    "strip": "{{ ('a'*4000000).strip('\u0101'*3999999 ~ 'a')|length }}",
    "lstrip": "{{ ('ab'*2000000).lstrip('\u0101'*5000000 ~ 'ab')|length }}",
    "lstrip within a value's bound": "{{ ('ab'*400000).lstrip('\u0101'*900000 ~ 'ab')|length }}",
    "trim": "{{ ('ab'*400000)|trim('\u0101'*900000 ~ 'ab')|length }}",
    "search from the right": "{{ ('a'*999999).rfind('ab' ~ 'a'*400000) }}",
    "sort": "{{ ('ab'*4000000)|sort|length }}",
    "sort within a value's bound": "{{ ('ab'*400000)|sort|length }}",
    "list of characters": "{{ ('\u0101'*999999)|list|length }}",
    "date pattern": "{{ strftime_now('%999Y'*1600000)|length }}",
    "date pattern within a value's bound": "{{ strftime_now('%Y'*400000)|length }}",
    "format of many": "{% set p=('%999d'*900000) %}{% set a=(1,)*900000 %}{{ (p % a)|length }}",
    "format within a value's bound": "{% set p=('%99d'*200000) %}{% set a=(1,)*60000 %}{{ (p % a)|length }}",
    "title": "{% for i in range(9) %}{% set x = ('ab '*2600000)|title %}{% endfor %}",
    "title within a value's bound": "{% for i in range(99) %}{% set x = ('ab '*300000)|title %}{% endfor %}",
    "split": "{% for i in range(99) %}{{ ('a '*400000).split()|length }}{% endfor %}",
    "splitlines": "{{ ('ab\n'*300000).splitlines()|length }}",
    "indent of lines": "{{ ('\n'*900000)|indent(99, true, true)|length }}",
    "slices that are kept": "{% set s = '\u0101' * 999999 %}"
    + "".join(f"{{% set s{number} = s[{number}:] %}}" for number in range(1, 2000)),
    "membership in a filter": "{% set l = range(60000)|list %}{{ l|select('in', l)|list|length }}",
    "dict from pairs": "{{ dict([((-1, -2), 1)])|length }}",
    "deep json": "{% set ns = namespace(l=range(50000)|list) %}{% for i in range(700) %}{% set ns.l = [ns.l] %}{% endfor %}"
    "{{ ns.l|tojson(indent=16)|length }}",
    "lists of views": "{% set d = {'a': 'x' * 900000} %}{{ ([d.items()] * 9999)|string|length }}",
    "comparison in a chain": "{% set s = 'a' * 999999 %}{{ s ~ 'b'" + " != s ~ 'c'" * 5000 + " }}",
    "text of a list, many times": "{% set s = ['\x00' * 999000] %}{% set x = s"
    + " ~ s" * 5000
    + " %}{{ x|length }}",
}
HOSTILE |= SINGLE_OPERATIONS


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_are_stopped_soon_and_small(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_bounds, "MAX_SECONDS", 0.5)
    tracemalloc.start()
    started = time.monotonic()
    try:
        with pytest.raises(ChatTemplateError, match="the model's chat template") as caught:
            ChatTemplate(HOSTILE[name]).render(MESSAGES)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert time.monotonic() - started < 8  # tracing costs several times the run
    assert not isinstance(caught.value.__cause__, MemoryError)
    assert peak < 200_000_000


RENDER_WITHIN_LIMITS = """
import resource, sys, time
from rrtf_serve.models.templates import ChatTemplate, ChatTemplateError
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 200_000_000,) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
started = time.process_time()
try:
    ChatTemplate(sys.stdin.read()).render([{"role": "user", "content": "hi"}])
except ChatTemplateError as error:
    assert not isinstance(error.__cause__, MemoryError), error
else:
    raise AssertionError("rendered")
assert time.process_time() - started < 2.5, time.process_time() - started
"""


@pytest.mark.parametrize("name", SINGLE_OPERATIONS)
def test_no_operation_takes_long_or_much_memory(name: str) -> None:
    """In a process of its own, since one that held the interpreter could not be stopped from inside."""
    child = [sys.executable, "-c", RENDER_WITHIN_LIMITS]
    done = subprocess.run(
        child, input=SINGLE_OPERATIONS[name], text=True, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{{ messages[0].__class__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ self.__init__ }}",
        "{{ (messages|map('string')).gi_frame.f_globals }}",
        "{{ messages|map(attribute='__class__')|list }}",
        "{% include 'a' %}",
        "{% import 'a' as b %}",
        "{% extends 'a' %}",
        "{{ '%s'.format_map({}) }}",
        "{{ ''|attr('__class__') }}",
    ],
)
def test_a_template_does_not_get_out(source: str) -> None:
    try:
        text = ChatTemplate(source).render(MESSAGES)
    except ChatTemplateError:
        return
    # jinja2 gives "undefined" for some refused attributes, which prints as nothing
    assert set(text) <= set("[Undefined, ]")


def test_a_namespace_does_not_print_what_it_holds() -> None:
    """Forty namespaces that each hold the one before twice have more text than any memory."""
    nested = GROWTH % ("namespace()", "{% set ns.s = namespace(a=ns.s, b=ns.s) %}")
    assert ChatTemplate(nested).render([]) == "<Namespace>"


def test_messages_are_left_as_they_were() -> None:
    messages = [{"role": "user", "content": "a"}]
    ChatTemplate("{% for m in messages %}{{ m.copy() }}{% endfor %}").render(messages)
    assert messages == [{"role": "user", "content": "a"}]


def test_a_templates_own_refusal_is_passed_on() -> None:
    with pytest.raises(ValueError, match="the model's chat template failed: roles must alternate"):
        ChatTemplate("{{ raise_exception('roles must alternate') }}").render(MESSAGES)


def test_a_failing_template_keeps_its_cause() -> None:
    with pytest.raises(ChatTemplateError, match="ZeroDivisionError") as caught:
        ChatTemplate("{{ 1 / 0 }}").render(MESSAGES)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(ChatTemplateError, match="does not compile"):
        ChatTemplate("{% if %}")


def test_the_date() -> None:
    text = ChatTemplate("{{ strftime_now('%Y') }}").render([])
    assert abs(int(text) - datetime.now().year) <= 1


def test_large_conversations_render() -> None:
    """Two thousand messages, and a message of five million characters, are within the bounds."""
    source = "{% for m in messages %}{{ '<' ~ m.role ~ '>' + m.content | trim + '\n' }}{% endfor %}"
    many = [{"role": "user", "content": f"message {number}"} for number in range(2000)]
    assert ChatTemplate(source).render(many).count("\n") == 2000
    long = [{"role": "user", "content": "x" * 5_000_000}]
    assert len(ChatTemplate(source).render(long)) == 5_000_007


def test_every_rendering_has_its_own_budget() -> None:
    template = ChatTemplate("{% for i in range(90000) %}{{ 'a' }}{% endfor %}")
    lengths: list[int] = []
    threads = [threading.Thread(target=lambda: lengths.append(len(template.render([])))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lengths == [90000] * 4

# ruff: noqa: E501  # a template reads best unbroken
from __future__ import annotations

import threading
import time
import tracemalloc
from datetime import datetime

import pytest

from rrtf_serve.models.template_bounds import MAX_SECONDS, MAX_TEXT
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
    "{% for i in range(3) %}{% for j in range(i) %}{{ i }}{{ j }}{{ loop.first }}{% endfor %}{% else %}none{% endfor %}",
]


@pytest.mark.parametrize("source", PUBLISHED_SHAPES)
@pytest.mark.filterwarnings("ignore")  # transformers' import
def test_renders_as_transformers_does(source: str) -> None:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    expected = _compile_jinja_template(source).render(
        messages=MESSAGES,
        tools=None,
        documents=None,
        add_generation_prompt=True,
        bos_token="<s>",
        eos_token="</s>",
    )
    assert ChatTemplate(source).render(MESSAGES, bos_token="<s>", eos_token="</s>") == expected


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
    + " or ".join(["(s + 'b') == (s + 'c')"] * 5000)
    + " }}",
    "too long": "x" * (MAX_SOURCE + 1),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_are_stopped_soon_and_small(name: str) -> None:
    tracemalloc.start()
    started = time.monotonic()
    try:
        with pytest.raises(ChatTemplateError, match="the model's chat template"):
            ChatTemplate(HOSTILE[name]).render(MESSAGES)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert time.monotonic() - started < MAX_SECONDS + 8  # tracing costs several times the run
    assert peak < 30 * MAX_TEXT


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
    assert text.strip("[], Undefie") == ""


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

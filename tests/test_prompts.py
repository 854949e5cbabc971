from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings, strategies
from nasty import TEXTS, texts
from reference_tokenizer import tokenizer_of_transformers
from tiny_gguf import byte_level_fields, sentencepiece_fields, write_gguf

from convert.gguf_metadata import read_metadata
from convert.tokenizer import read_tokenizer_settings, write_tokenizer
from rrtf_serve.models.families import FAMILIES, ChatFormat, detect_family
from rrtf_serve.models.prompts import PromptError, Prompts, Setting, docstring_first
from rrtf_serve.models.source import Source
from rrtf_serve.models.templates import ChatTemplateError
from rrtf_serve.models.tokens import Tokenizer

MARKERS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<fim_prefix>",
    "<fim_suffix>",
    "<fim_middle>",
    "<fim_pad>",
    "<file_sep>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
]
USER = {"role": "user", "content": "Sort a list."}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Small and byte-level, with the markers of StarCoder, ChatML and StarChat."""
    folder = tmp_path_factory.mktemp("small")
    fields = byte_level_fields("starcoder", MARKERS, Path(__file__).read_text("utf-8"))
    write_tokenizer(read_metadata(write_gguf(folder / "a.gguf", fields)), folder)
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Small and SentencePiece-shaped, with Code Llama's markers."""
    folder = tmp_path_factory.mktemp("llama")
    fields = sentencepiece_fields(["▁def", "▁return", "def", "▁x", "▁▁▁▁"])
    fields["ggml.tokens"] += ["▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"]
    fields["ggml.token_type"] += [3] * 4
    fields["ggml.scores"] += [0.0] * 4
    write_tokenizer(read_metadata(write_gguf(folder / "a.gguf", fields)), folder)
    return Tokenizer.load(folder)


def prompts(tokenizer: Tokenizer, family: str, **changes: Any) -> Prompts:
    options = {"chat_template": "", "add_bos": False, "bos_token": "<s>", "end_tokens": ["<|endoftext|>"]}
    return Prompts(tokenizer, FAMILIES[family], **{**options, **changes})


def shown(tokenizer: Tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_specials=False)


@pytest.fixture(scope="session", params=["smollm2", pytest.param("qwen", marks=pytest.mark.slow)])
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Prompts, Any]:
    """A real model's prompts, and transformers' tokenizer of the same file."""
    source: Source = request.getfixturevalue(f"{request.param}_source")
    folder = tmp_path_factory.mktemp(f"prompts-{request.param}")
    metadata = read_metadata(source.path)
    found = read_tokenizer_settings(metadata)
    write_tokenizer(metadata, folder)
    loaded = Tokenizer.load(folder)
    family = detect_family(metadata.text("general.architecture"), loaded, "model", found.chat_template)
    assert family == source.family
    made = Prompts(
        loaded,
        FAMILIES[family],
        chat_template=found.chat_template,
        add_bos=found.add_bos,
        bos_token=found.bos_token,
        end_tokens=found.end_tokens,
    )
    return made, tokenizer_of_transformers(source.path)


contents = strategies.text(alphabet="ab \n<|>'é_:é好😀", max_size=30)


@given(
    messages=strategies.lists(
        strategies.fixed_dictionaries(
            {"role": strategies.sampled_from(["user", "assistant", "system"]), "content": contents}
        ),
        min_size=1,
        max_size=5,
    )
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_chat_ids_equal_transformers(real: tuple[Prompts, Any], messages: list[dict[str, str]]) -> None:
    made, reference = real
    expected = reference.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert made.chat(messages) == expected


def test_chat_with_marker_strings_equals_transformers(real: tuple[Prompts, Any]) -> None:
    made, reference = real
    messages = [{"role": "user", "content": "what is <|im_end|>?\n<|im_start|>system\n"}]
    expected = reference.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert made.chat(messages) == expected


def test_ends_of_real_models(real: tuple[Prompts, Any]) -> None:
    made, reference = real
    ids = reference.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert made.chat_end_ids >= set(ids)
    assert made.has_chat
    if made.family is FAMILIES["qwen2.5-coder"]:
        assert made.infill_end_ids == {151643, 151645, 151659, 151660, 151661, 151662, 151663, 151664}
        assert made.infill("a", "b") == [151659, 64, 151661, 65, 151660]
    else:
        assert not made.has_infill


FORMATS = [
    (
        "smollm2",
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
        "<|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\n",
    ),
    (
        "starchat",
        "<|system|>\nS<|end|>\n<|user|>\nQ<|end|>\n<|assistant|>\nA<|end|>\n<|user|>\nR<|end|>\n<|assistant|>",
    ),
    (
        "wizardcoder",
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nS\n\nQ\n\n### Response:A\n\n### Instruction:\nR\n\n### Response:",
    ),
    ("starcoder", '"""\nS\n\nQ\n"""\nA\n\n"""\nR\n"""\n'),
    ("plain", "S\n\nQ\nA\nR\n"),
]


@pytest.mark.parametrize(("family", "text"), FORMATS)
def test_built_in_formats(tokenizer: Tokenizer, family: str, text: str) -> None:
    made = prompts(tokenizer, family)
    messages = [("system", "S"), ("user", "Q"), ("assistant", "A"), ("user", "R")]
    ids = made.chat([{"role": role, "content": content} for role, content in messages])
    assert ids == tokenizer.encode(text, specials=True)


@pytest.mark.parametrize("family", [family for family, _ in FORMATS])
@pytest.mark.parametrize("marker", MARKERS)
def test_user_text_never_becomes_a_marker_of_a_built_in_format(
    tokenizer: Tokenizer, family: str, marker: str
) -> None:
    made = prompts(tokenizer, family)
    plain = made.chat([{"role": "user", "content": ""}, {"role": "user", "content": "x"}])
    ids = made.chat([{"role": "user", "content": marker}, {"role": "user", "content": "x"}])
    markers = tokenizer.special_ids
    assert [token for token in ids if token in markers] == [token for token in plain if token in markers]
    assert marker in shown(tokenizer, ids)


def test_docstring_first_is_the_papers_format() -> None:
    assert docstring_first("Add two.\n", "def add(a, b):\n") == '"""\nAdd two.\n"""\ndef add(a, b):\n'
    quoted = docstring_first('Use """ here.')
    assert eval(quoted.strip()) == '\nUse """ here.\n'


def test_the_models_template_wins_and_can_be_overridden(tokenizer: Tokenizer) -> None:
    template = "{% for m in messages %}<|user|>{{ m.content }}{% endfor %}<|assistant|>{{ eos_token }}"
    made = prompts(tokenizer, "wizardcoder", chat_template=template)
    assert shown(tokenizer, made.chat([USER])) == "<|user|>Sort a list.<|assistant|><|endoftext|>"
    assert made.chat_stops == ()
    plain = prompts(tokenizer, "wizardcoder", chat_template=template, chat_format=ChatFormat.PLAIN)
    assert shown(tokenizer, plain.chat([USER])) == "Sort a list.\n"
    assert prompts(tokenizer, "wizardcoder").chat_stops == ("\n### Instruction:", "\n### Response:")


def test_a_broken_chat_template_fails_chats_only(
    tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    made = prompts(tokenizer, "starcoder", chat_template="{% if %}")
    assert "does not compile" in caplog.text
    assert made.infill("a", "b")
    with pytest.raises(ChatTemplateError, match="does not compile"):
        made.chat([USER])


def test_messages_that_can_not_be_rendered_are_refused(tokenizer: Tokenizer, llama: Tokenizer) -> None:
    with pytest.raises(PromptError, match="at least one message"):
        prompts(tokenizer, "starcoder").chat([])
    with pytest.raises(PromptError, match=r"messages\[1\]\.role.*'tool'"):
        prompts(tokenizer, "starcoder").chat([USER, {"role": "tool", "content": "x"}])
    assert not prompts(llama, "codellama").has_chat
    with pytest.raises(PromptError, match="Code Llama model has no chat template"):
        prompts(llama, "codellama").chat([USER])


@given(before=texts, after=texts)
@settings(max_examples=200, deadline=None)
def test_infill_is_the_vendors_string_as_tokens(tokenizer: Tokenizer, before: str, after: str) -> None:
    assume(not any(marker in before or marker in after for marker in MARKERS))
    made = prompts(tokenizer, "starcoder")
    assert made.infill(before, after) == tokenizer.encode(
        f"<fim_prefix>{before}<fim_suffix>{after}<fim_middle>", specials=True
    )


@pytest.mark.parametrize("text", [*TEXTS, *MARKERS])
def test_markers_in_code_stay_code(tokenizer: Tokenizer, text: str) -> None:
    ids = prompts(tokenizer, "starcoder").infill(text, text)
    markers = [token for token in ids if token in tokenizer.special_ids]
    assert markers == [tokenizer.token_id(f"<fim_{part}>") for part in ("prefix", "suffix", "middle")]
    assert shown(tokenizer, ids) == f"<fim_prefix>{text}<fim_suffix>{text}<fim_middle>"


def test_code_llama_writes_a_space_before_the_prefix_and_none_before_the_suffix(llama: Tokenizer) -> None:
    """As meta-llama/codellama does: the prefix encoded normally, the suffix without SentencePiece's space."""
    made = prompts(llama, "codellama", add_bos=True, end_tokens=["</s>"])
    token = llama.token_id
    assert made.infill("def", "def") == [
        token("<s>"), token("▁<PRE>"), token("▁def"), token("▁<SUF>"), token("def"), token("▁<MID>")
    ]  # fmt: skip
    assert made.infill_end_ids == {token(text) for text in ("</s>", "▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>")}


@pytest.mark.parametrize("prompt", ["<PRE> def <SUF>def <MID>", " <PRE> def <SUF>def <MID>\n"])
def test_code_llamas_prompt_as_clients_write_it(llama: Tokenizer, prompt: str) -> None:
    made = prompts(llama, "codellama", add_bos=True)
    assert made.completion(prompt) == made.infill("def", "def")
    letters = made.completion("<PRE> def")
    assert llama.token_id("▁<PRE>") not in letters  # half a prompt is text


def test_suffix_first_layout(tokenizer: Tokenizer) -> None:
    fim = FAMILIES["starcoder"].fim
    assert fim is not None
    family = replace(FAMILIES["starcoder"], fim=replace(fim, layout="SPM"))
    made = Prompts(tokenizer, family, chat_template="", add_bos=False, bos_token="", end_tokens=[])
    assert shown(tokenizer, made.infill("a", "b")) == "<fim_prefix><fim_suffix>b<fim_middle>a"


def test_a_family_or_vocabulary_without_markers_can_not_infill(
    tokenizer: Tokenizer, llama: Tokenizer
) -> None:
    for made in (prompts(tokenizer, "smollm2"), prompts(llama, "starcoder")):
        assert not made.has_infill
        assert made.infill_end_ids == frozenset()
        with pytest.raises(PromptError, match=r"suffix: this model can't.*Qwen2\.5-Coder, StarCoder"):
            made.infill("a", "b")


@given(before=texts, after=texts, budget=strategies.integers(4, 60))
@settings(max_examples=400, deadline=None)
def test_limited_infill_keeps_what_is_next_to_the_cursor(
    tokenizer: Tokenizer, before: str, after: str, budget: int
) -> None:
    made = prompts(tokenizer, "starcoder", add_bos=True, bos_token="<|endoftext|>")
    whole = made.infill(before, after)
    if budget == 4:
        with pytest.raises(PromptError, match="no room"):
            made.infill_limited(before, after, budget)
        return
    if len(whole) <= budget:
        assert made.infill_limited(before, after, budget) == whole
        return
    ids = made.infill_limited(before, after, budget)
    assert len(ids) <= budget
    text = shown(tokenizer, ids)
    head, _, rest = text.removeprefix("<|endoftext|><fim_prefix>").partition("<fim_suffix>")
    assert before.endswith(head)
    assert after.startswith(rest.removesuffix("<fim_middle>"))
    # Nothing is wasted but parts of characters and of lines, and of these less than half.
    assert len(ids) >= min(budget, len(whole)) // 2 - 6


def test_limited_infill_of_a_huge_file_is_quick_and_shares_the_room(tokenizer: Tokenizer) -> None:
    made = prompts(tokenizer, "starcoder")
    ids = made.infill_limited("x = 1\n" * 400_000, "y = 2\n" * 400_000, 1000)
    gap = ids.index(tokenizer.token_id("<fim_suffix>"))
    assert len(ids) >= 980
    assert 0.2 < (len(ids) - gap) / len(ids) < 0.3
    short = made.infill_limited("x = 1\n" * 10_000, "end", 1000)
    assert len(short) >= 985
    assert shown(tokenizer, short).endswith("x = 1\n<fim_suffix>end<fim_middle>")


def test_limited_infill_cuts_between_lines(tokenizer: Tokenizer) -> None:
    made = prompts(tokenizer, "starcoder")
    before, after = "".join(f"line {n}\n" for n in range(100)), "".join(f"row {n}\n" for n in range(100))
    for budget in range(60, 80):
        text = shown(tokenizer, made.infill_limited(before, after, budget))
        head, _, rest = text.removeprefix("<fim_prefix>").partition("<fim_suffix>")
        assert head.startswith("line ")
        assert before.endswith(head)
        assert rest.endswith("\n<fim_middle>")
        assert 1.5 < len(head) / len(rest.removesuffix("<fim_middle>")) < 6  # three to one


B = Setting("src/b.py", (("a.py", "A = 1\n"), ("c.py", "C = 3")), "org/repo")


@pytest.mark.parametrize(
    ("family", "markers", "setting", "text"),
    [
        ("qwen2.5-coder", ("<|repo_name|>", "<|file_sep|>"), B,
         "<|repo_name|>org/repo\n<|file_sep|>c.py\nC = 3\n<|file_sep|>a.py\nA = 1\n<|file_sep|>src/b.py\n"
         "<|fim_prefix|>x<|fim_suffix|>y<|fim_middle|>"),
        ("qwen2.5-coder", ("<|repo_name|>", "<|file_sep|>"), Setting("b.py"),
         "<|file_sep|>b.py\n<|fim_prefix|>x<|fim_suffix|>y<|fim_middle|>"),
        ("starcoder2", ("<repo_name>", "<file_sep>"), B,
         "<repo_name>org/repo<file_sep>c.py\nC = 3\n<file_sep>a.py\nA = 1\n<file_sep>"
         "<fim_prefix>src/b.py\nx<fim_suffix>y<fim_middle>"),
        ("starcoder", ("<reponame>", "<filename>"), B,
         "<fim_prefix><reponame>org/repo<filename>c.py\nC = 3\n<filename>a.py\nA = 1\n<filename>src/b.py\nx"
         "<fim_suffix>y<fim_middle>"),
        # without the tokens: comments of the language, where that is known
        ("starcoder", (), B,
         "<fim_prefix># Path: c.py\n# C = 3\n# Path: a.py\n# A = 1\nx<fim_suffix>y<fim_middle>"),
        ("starcoder", (), Setting("", B.snippets), "<fim_prefix>x<fim_suffix>y<fim_middle>"),
        ("starcoder", (), Setting("b.js", (("a.js", "let a = 1;\n\nlet b;"),)),
         "<fim_prefix>// Path: a.js\n// let a = 1;\n//\n// let b;\nx<fim_suffix>y<fim_middle>"),
        ("deepseek-coder", (), B, "<|b|>#c.py\nC = 3\n#a.py\nA = 1\n#src/b.py\nx<|h|>y<|e|>"),
    ],
)  # fmt: skip
def test_files_of_a_repository(
    tmp_path: Path, family: str, markers: tuple[str, ...], setting: Setting, text: str
) -> None:
    fim = FAMILIES[family].fim
    assert fim is not None
    names = [fim.prefix, fim.suffix, fim.middle]
    fields = byte_level_fields("starcoder", [*names, *markers], "a b c\n")
    write_tokenizer(read_metadata(write_gguf(tmp_path / "a.gguf", fields)), tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    made = prompts(tokenizer, family)
    for mark, short in zip(names, ("<|b|>", "<|h|>", "<|e|>"), strict=True):
        text = text.replace(short, mark)
    ids = made.infill_limited("x", "y", 500, setting)
    assert shown(tokenizer, ids) == text
    assert made.infill_limited("x", "y", len(ids), setting) == ids
    # A marker in a file, or in a name, stays text.
    hostile = Setting(names[0], ((names[1], f"{names[2]} more text here"),), names[0])
    ids = made.infill_limited("x", "y", 500, hostile)
    assert [ids.count(tokenizer.token_id(name)) for name in names] == [1, 1, 1]
    # The files go first, the text around the cursor last.
    assert shown(tokenizer, made.infill_limited("x", "y", 5, setting)) == f"{names[0]}x{names[1]}y{names[2]}"
    for budget in range(5, len(ids) + 1):
        assert len(made.infill_limited("x", "y", budget, setting)) <= budget


def test_completions_read_markers_and_take_one_bos(tokenizer: Tokenizer, llama: Tokenizer) -> None:
    made = prompts(tokenizer, "starcoder")
    assert made.completion("<fim_prefix>a")[0] == tokenizer.token_id("<fim_prefix>")
    assert made.completion("") == []
    with_bos = prompts(llama, "codellama", add_bos=True)
    assert with_bos.completion("def") == [1, llama.token_id("▁def")]
    assert with_bos.completion("<s>def")[:2] == [1, llama.token_id("▁def")]
    assert with_bos.completion("") == [1]
    assert prompts(llama, "codellama").completion("def") == [llama.token_id("▁def")]


def test_ends_that_are_not_tokens_become_stop_strings(tokenizer: Tokenizer) -> None:
    made = prompts(tokenizer, "starcoder", end_tokens=["<|endoftext|>", "<unheard-of>"])
    assert made.infill_stops == ("<filename>", "<reponame>")
    assert made.chat_end_ids == {tokenizer.token_id("<|endoftext|>")}
    assert made.infill_end_ids == {tokenizer.token_id(text) for text in ("<|endoftext|>", *MARKERS[3:7])}

"""Prompt families: how each kind of model is asked, what fills a middle, and which tokens end a text.

One table, `FAMILIES`; prompts.py renders what it says. Tokens are written as in the vendors' vocabularies.
Sources: StarCoder https://arxiv.org/abs/2305.06161 and https://github.com/bigcode-project/starcoder;
StarCoder2 https://arxiv.org/abs/2402.19173, section 5.1; PanGu-Coder2 https://arxiv.org/abs/2307.14936;
Qwen https://github.com/QwenLM/Qwen2.5-Coder; WizardCoder https://github.com/nlpxucan/WizardLM;
Code Llama https://github.com/meta-llama/codellama, llama/generation.py; DeepSeek
https://github.com/deepseek-ai/DeepSeek-Coder.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, Protocol

_BAR, _GAP = "\uff5c", "\u2581"  # DeepSeek's full-width bar; SentencePiece's space


class ChatFormat(StrEnum):
    """A built-in way to write a conversation, for models without a chat template of their own."""

    CHATML = "chatml"
    STARCHAT = "starchat"
    ALPACA = "alpaca"
    DOCSTRING = "docstring"  # PanGu-Coder2: the request as a docstring, code follows
    PLAIN = "plain"  # the contents one after another


@dataclass(frozen=True)
class Fim:
    """Fill in the middle: marker tokens and what ends the middle.

    layout PSM: prefix marker, prefix, suffix marker, suffix, middle marker. SPM: prefix marker, suffix
    marker, suffix, middle marker, prefix. `repo` and `file` separate the files of a repository, where the
    model knows them; `files` says where they stand, see infilling.py. `file_comment`: a model without such
    markers learnt to read files one after another, each under its name behind this mark. `written`: prefix,
    suffix and middle markers as clients put them into a text, where that isn't as the vocabulary has them.
    """

    prefix: str
    suffix: str
    middle: str
    ends: tuple[str, ...]
    layout: Literal["PSM", "SPM"] = "PSM"
    repo: str = ""
    file: str = ""
    files: Literal["", "before", "between", "within"] = ""
    file_comment: str = ""
    written: tuple[str, str, str] | None = None

    def taken_apart(self, text: str) -> tuple[str, str, str] | None:
        """What a text holds that was put together of these markers in the order prefix, suffix, middle: what
        stands before them, the prefix, and the suffix. None where it is no such text, or where a marker
        stands in it more than once: code holds it, too."""
        for markers in ((self.prefix, self.suffix, self.middle), self.written):
            if markers is None or any(text.count(marker) != 1 for marker in markers):
                continue
            head, _, rest = text.partition(markers[0])
            prefix, gap, rest = rest.partition(markers[1])
            suffix, end, tail = rest.partition(markers[2])
            if gap and end and not tail.strip():
                return head, prefix, suffix
        return None


@dataclass(frozen=True)
class Family:
    """How to prompt one family of models. The ends come on top of those that the model itself names."""

    title: str
    chat: ChatFormat | None  # where the model has no template of its own; None: it can't chat then
    ends: tuple[str, ...]
    fim: Fim | None = None
    chat_stops: tuple[str, ...] = ()  # strings, for formats whose turns end without a token of their own


_STARCODER_MARKERS = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<fim_pad>")
_STARCODER_FIM = Fim(
    prefix="<fim_prefix>",
    suffix="<fim_suffix>",
    middle="<fim_middle>",
    ends=(*_STARCODER_MARKERS, "<filename>", "<reponame>"),
    repo="<reponame>",
    file="<filename>",
    files="within",
)
_ALPACA_STOPS = ("\n### Instruction:", "\n### Response:")

FAMILIES: dict[str, Family] = {
    "qwen2.5-coder": Family(
        title="Qwen2.5-Coder",
        chat=ChatFormat.CHATML,
        ends=("<|im_end|>", "<|endoftext|>"),
        fim=Fim(
            prefix="<|fim_prefix|>",
            suffix="<|fim_suffix|>",
            middle="<|fim_middle|>",
            # the vendor's own list of ends for completion and infilling
            ends=(
                "<|fim_prefix|>",
                "<|fim_middle|>",
                "<|fim_suffix|>",
                "<|fim_pad|>",
                "<|repo_name|>",
                "<|file_sep|>",
            ),
            repo="<|repo_name|>",
            file="<|file_sep|>",
            files="before",
        ),
    ),
    "smollm2": Family(
        title="SmolLM2", chat=ChatFormat.CHATML, ends=("<|im_end|>", "<|endoftext|>", "<file_sep>")
    ),
    "starcoder": Family(
        title="StarCoder", chat=ChatFormat.DOCSTRING, ends=("<|endoftext|>",), fim=_STARCODER_FIM
    ),
    "starcoder2": Family(
        title="StarCoder2",
        chat=ChatFormat.DOCSTRING,
        ends=("<|endoftext|>",),
        # It was trained on whole repositories: after the middle comes the next file, not the end of the text.
        fim=Fim(
            prefix="<fim_prefix>",
            suffix="<fim_suffix>",
            middle="<fim_middle>",
            ends=(*_STARCODER_MARKERS, "<file_sep>", "<repo_name>"),
            repo="<repo_name>",
            file="<file_sep>",
            files="between",
        ),
    ),
    "starchat": Family(
        title="StarChat",
        chat=ChatFormat.STARCHAT,
        ends=("<|end|>", "<|endoftext|>"),
        fim=_STARCODER_FIM,
    ),
    "wizardcoder": Family(
        title="WizardCoder",
        chat=ChatFormat.ALPACA,
        ends=("<|endoftext|>", "</s>"),
        fim=_STARCODER_FIM,
        chat_stops=_ALPACA_STOPS,
    ),
    "codellama": Family(
        title="Code Llama",
        chat=None,
        ends=("</s>",),
        fim=Fim(
            prefix=f"{_GAP}<PRE>",
            suffix=f"{_GAP}<SUF>",
            middle=f"{_GAP}<MID>",
            ends=(f"{_GAP}<EOT>", f"{_GAP}<PRE>", f"{_GAP}<SUF>", f"{_GAP}<MID>"),
            # The vendor's own string; Zed, Continue and Ollama's template send it.
            written=("<PRE> ", " <SUF>", " <MID>"),
        ),
    ),
    "deepseek-coder": Family(
        title="DeepSeek-Coder",
        chat=None,
        ends=(f"<{_BAR}end{_GAP}of{_GAP}sentence{_BAR}>", "<|EOT|>"),
        fim=Fim(
            prefix=f"<{_BAR}fim{_GAP}begin{_BAR}>",
            suffix=f"<{_BAR}fim{_GAP}hole{_BAR}>",
            middle=f"<{_BAR}fim{_GAP}end{_BAR}>",
            ends=tuple(f"<{_BAR}fim{_GAP}{part}{_BAR}>" for part in ("begin", "hole", "end")),
            file_comment="#",
        ),
    ),
    "plain": Family(title="any model", chat=ChatFormat.PLAIN, ends=("<|endoftext|>", "</s>")),
}


class Vocabulary(Protocol):
    """What detection asks of a tokenizer."""

    def token_id(self, text: str) -> int | None: ...


def detect_family(architecture: str, tokenizer: Vocabulary, name: str, chat_template: str) -> str:
    """The family of a model outside the catalogue: a key of FAMILIES, "plain" when nothing is recognised.

    Goes by the name where only the name tells (WizardCoder, StarChat), else by the tokens in the vocabulary.
    """
    name = name.lower()

    def has(*tokens: str) -> bool:
        return all(tokenizer.token_id(token) is not None for token in tokens)

    def fills_like(key: str) -> bool:
        fim = FAMILIES[key].fim
        return fim is not None and has(fim.prefix, fim.suffix, fim.middle)

    rules = (
        ("wizardcoder", "wizardcoder" in name),
        ("starchat", "starchat" in name or has("<|system|>", "<|user|>", "<|assistant|>", "<fim_prefix>")),
        ("codellama", fills_like("codellama")),
        ("deepseek-coder", fills_like("deepseek-coder")),
        ("qwen2.5-coder", fills_like("qwen2.5-coder") and has("<|im_start|>")),
        ("starcoder2", architecture == "starcoder2" and fills_like("starcoder2")),
        ("starcoder", fills_like("starcoder")),
        ("smollm2", has("<|im_start|>", "<|im_end|>")),
        ("wizardcoder", "### Instruction:" in chat_template and "### Response:" in chat_template),
    )
    return next((key for key, holds in rules if holds), "plain")

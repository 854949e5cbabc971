"""Prompts as token ids: a conversation, a text to go on with, or a middle to fill.

    prompts = Prompts(tokenizer, FAMILIES[card.family], chat_template=card.chat_template, ...)
    prompts.chat([{"role": "user", "content": "Sort a list."}])
    prompts.infill("def add(a, b):\\n    return ", "\\n")

A model's own chat template wins over the family's format. A user's text never becomes a marker of a built-in
format or of an infilling prompt: code that holds the string `<|fim_middle|>` stays code. The output of a
model's own template is read as its vendor reads it: marker strings anywhere in it become tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.families import FAMILIES, ChatFormat, Family, detect_family
from rrtf_serve.models.folder import Card
from rrtf_serve.models.infilling import NOWHERE, Infilling, PromptError, Setting, ending_in
from rrtf_serve.models.templates import ChatTemplate, ChatTemplateError
from rrtf_serve.models.tokens import Tokenizer

_ALPACA_INTRODUCTION = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
)
__all__ = ["PromptError", "Prompts", "Setting", "docstring_first", "prompts_of"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Marker:
    """A token of a prompt format, as against text."""

    text: str


_Pieces = list["str | _Marker"]


def docstring_first(docstring: str, signature: str = "") -> str:
    """PanGu-Coder2's prompt: the problem as a docstring, then the signature (arXiv 2307.14936, section 4)."""
    escaped = docstring.strip("\n").replace('"""', r"\"\"\"")
    return f'"""\n{escaped}\n"""\n{signature}'


REPEATED_LINES = 2  # of a suffix: so many, written once more, end the middle
REPEATED_CHARACTERS = 8  # in them; less, such as a closing bracket, is no sign of a repetition


class Prompts:
    """Renders prompts for one model.

    `end_tokens` are token strings that the model itself names as ends, its EOS first; unknown ones are left
    out.
    `chat_format` overrides both the model's template and the family's format.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        family: Family,
        *,
        chat_template: str,
        add_bos: bool,
        bos_token: str,
        end_tokens: Sequence[str],
        chat_format: ChatFormat | None = None,
    ) -> None:
        """A chat template that does not compile is logged and fails each `chat`; all else works."""
        self.family = family
        self._tokenizer = tokenizer
        self._bos_token = bos_token
        self._eos_token = end_tokens[0] if end_tokens else ""
        bos = tokenizer.token_id(bos_token) if add_bos and bos_token else None
        self._bos = [] if bos is None else [bos]
        self._template: ChatTemplate | ChatTemplateError | None = None
        if chat_template and chat_format is None:
            try:
                self._template = ChatTemplate(chat_template)
            except ChatTemplateError as error:
                _log.warning("%s; chat requests will be refused", error)
                self._template = error
        self._format = chat_format or family.chat
        fim = family.fim
        self._infilling: Infilling | None = None
        if fim is not None and None not in map(tokenizer.token_id, (fim.prefix, fim.suffix, fim.middle)):
            self._infilling = Infilling(tokenizer, fim, self._bos)
        self.has_infill = self._infilling is not None
        self.has_chat = self._template is not None or self._format is not None
        fim_ends = fim.ends if fim is not None else ()
        self.chat_end_ids = self._known([*end_tokens, *family.ends])
        self.completion_end_ids = self._known([*end_tokens, *family.ends, *fim_ends])
        self.infill_end_ids = self.completion_end_ids if self.has_infill else frozenset()
        self.chat_stops = family.chat_stops if self._template is None else ()
        # An end that this vocabulary does not hold as one token can still turn up as text.
        self.infill_stops = tuple(end for end in fim_ends if tokenizer.token_id(end) is None)

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """A conversation of role and content, with the start of the assistant's answer.

        Raises PromptError without messages, on a role unknown to a built-in format, or where the model has no
        chat format; ValueError when the model's template fails or refuses the conversation.
        """
        if not messages:
            raise PromptError("messages: at least one message is needed")
        if isinstance(self._template, ChatTemplateError):
            raise self._template
        if self._template is not None:
            text = self._template.render(messages, bos_token=self._bos_token, eos_token=self._eos_token)
            return self._tokenizer.encode(text, specials=True)
        if self._format is None:
            raise PromptError(
                f"messages: this {self.family.title} model has no chat template; "
                "send a completion, or use an instruction-tuned model"
            )
        return self._encode(_conversation(self._format, _turns(messages)))

    def completion(self, prompt: str) -> list[int]:
        """A text to go on with. Marker strings in it become tokens: clients may render formats themselves."""
        fim = self.family.fim
        around = fim.taken_apart(prompt) if fim is not None and fim.written is not None else None
        if self._infilling is not None and around is not None and not around[0].strip():
            return self._infilling.whole(*around[1:])
        ids = self._tokenizer.encode(prompt, specials=True)
        return ids if ids[: len(self._bos)] == self._bos else self._bos + ids

    def continuation_limited(self, text: str, budget_tokens: int) -> list[int]:
        """The end of a text to go on with, in at most `budget_tokens`; marker strings in it stay text. Raises
        PromptError on a budget without room for text."""
        room = budget_tokens - len(self._bos)
        if room < 1:
            raise PromptError(f"a prompt of {budget_tokens} tokens leaves no room for text; lower max_tokens")
        return [*self._bos, *ending_in(self._tokenizer, text, room)]

    def infill(self, prefix: str, suffix: str) -> list[int]:
        """The prompt whose completion goes between the two. Raises PromptError where the model can't."""
        return self._infills().whole(prefix, suffix)

    def infill_limited(
        self, prefix: str, suffix: str, budget_tokens: int, setting: Setting = NOWHERE
    ) -> list[int]:
        """As `infill`, in at most `budget_tokens`; see Infilling.limited. Raises PromptError."""
        return self._infills().limited(prefix, suffix, budget_tokens, setting)

    def middle_stops(self, code: str, suffix: str) -> tuple[str, ...]:
        """Where the middle ends though no end token came: small models go on and write the suffix once more,
        or close a Markdown block and explain. `code` is what stands before the cursor.

        Two lines with text in them tell: one line alone may well occur in the middle, too. The first of the
        two may be the rest of the cursor's own line.
        """
        own, _, below = suffix.partition("\n")
        lines = [own, *below.split("\n")] if own.strip() else below.lstrip("\n").split("\n")
        filled = [number for number, line in enumerate(lines) if line.strip()][:REPEATED_LINES]
        head = "\n".join(lines[: filled[-1] + 1]) if filled else ""
        stops: tuple[str, ...] = ()
        if own.strip() and len(filled) == REPEATED_LINES:
            stops = (head,)
        elif not own.strip() and len(head.strip()) >= REPEATED_CHARACTERS:
            stops = (f"\n{head}",)
        fence = () if "```" in code or "```" in suffix else ("\n```",)
        return self.infill_stops + stops + fence

    def _infills(self) -> Infilling:
        if self._infilling is None:
            able = ", ".join(family.title for family in FAMILIES.values() if family.fim is not None)
            raise PromptError(f"suffix: this model can't fill in the middle; families that can: {able}")
        return self._infilling

    def _known(self, tokens: Iterable[str]) -> frozenset[int]:
        ids = (self._tokenizer.token_id(token) for token in tokens)
        return frozenset(token for token in ids if token is not None)

    def _encode(self, pieces: _Pieces) -> list[int]:
        ids = list(self._bos)
        text = ""
        for piece in pieces:
            token = self._tokenizer.token_id(piece.text) if isinstance(piece, _Marker) else None
            if token is None:
                text += piece.text if isinstance(piece, _Marker) else piece
                continue
            ids += [*self._tokenizer.encode(text, specials=False), token]
            text = ""
        return ids + self._tokenizer.encode(text, specials=False)


@dataclass(frozen=True)
class _Turn:
    user: str
    assistant: str | None = None


@dataclass(frozen=True)
class _Dialogue:
    system: str
    turns: list[_Turn]


def _turns(messages: Sequence[Mapping[str, str]]) -> _Dialogue:
    """Messages as turns: system texts joined, several user messages in a row joined."""
    system: list[str] = []
    turns: list[_Turn] = []
    waiting: list[str] = []
    for index, message in enumerate(messages):
        role, content = message.get("role", ""), message.get("content", "")
        if role in ("system", "developer"):
            system.append(content)
        elif role == "user":
            waiting.append(content)
        elif role == "assistant":
            turns.append(_Turn("\n\n".join(waiting), content))
            waiting = []
        else:
            raise PromptError(
                f"messages[{index}].role: this model takes system, user and assistant, not {role!r}"
            )
    turns.append(_Turn("\n\n".join(waiting)))
    return _Dialogue("\n\n".join(system), turns)


def _conversation(chat: ChatFormat, dialogue: _Dialogue) -> _Pieces:
    writers = {
        ChatFormat.CHATML: _chatml,
        ChatFormat.STARCHAT: _starchat,
        ChatFormat.ALPACA: _alpaca,
        ChatFormat.DOCSTRING: _docstring,
        ChatFormat.PLAIN: _plain,
    }
    return writers[chat](dialogue)


def _chatml(dialogue: _Dialogue) -> _Pieces:
    start, end = _Marker("<|im_start|>"), _Marker("<|im_end|>")
    pieces: _Pieces = []
    if dialogue.system:
        pieces += [start, f"system\n{dialogue.system}", end, "\n"]
    for turn in dialogue.turns:
        if turn.user:
            pieces += [start, f"user\n{turn.user}", end, "\n"]
        if turn.assistant is not None:
            pieces += [start, f"assistant\n{turn.assistant}", end, "\n"]
    return [*pieces, start, "assistant\n"]


def _starchat(dialogue: _Dialogue) -> _Pieces:
    """StarChat's template, the system part always there (bigcode-project/starcoder, chat/dialogues.py)."""
    end = _Marker("<|end|>")
    pieces: _Pieces = [_Marker("<|system|>"), f"\n{dialogue.system}", end, "\n"]
    for turn in dialogue.turns:
        if turn.user:
            pieces += [_Marker("<|user|>"), f"\n{turn.user}", end, "\n"]
        if turn.assistant is not None:
            pieces += [_Marker("<|assistant|>"), f"\n{turn.assistant}", end, "\n"]
    return [*pieces, _Marker("<|assistant|>")]


def _with_system(dialogue: _Dialogue) -> list[_Turn]:
    """The turns, the system text put before the first user text: for formats without a place for it."""
    first, *rest = dialogue.turns
    user = "\n\n".join(part for part in (dialogue.system, first.user) if part)
    return [_Turn(user, first.assistant), *rest]


def _alpaca(dialogue: _Dialogue) -> _Pieces:
    text = _ALPACA_INTRODUCTION
    for turn in _with_system(dialogue):
        instruction = f"### Instruction:\n{turn.user}\n\n" if turn.user else ""
        text += f"{instruction}### Response:"
        if turn.assistant is not None:
            text += f"{turn.assistant}\n\n"
    return [text]


def _docstring(dialogue: _Dialogue) -> _Pieces:
    text = ""
    for turn in _with_system(dialogue):
        text += docstring_first(turn.user) if turn.user else ""
        if turn.assistant is not None:
            text += f"{turn.assistant}\n\n"
    return [text]


def _plain(dialogue: _Dialogue) -> _Pieces:
    text = ""
    for turn in _with_system(dialogue):
        text += f"{turn.user}\n" if turn.user else ""
        if turn.assistant is not None:
            text += f"{turn.assistant}\n"
    return [text]


def prompts_of(card: Card, tokenizer: Tokenizer) -> Prompts:
    """As the card says, its family guessed where it names none. Raises ModelError on an unknown family."""
    family = card.family or detect_family(card.architecture, tokenizer, card.name, card.chat_template)
    if family not in FAMILIES:
        raise ModelError(f"--family {family}: unknown; known: {', '.join(sorted(FAMILIES))}")
    return Prompts(
        tokenizer,
        FAMILIES[family],
        chat_template=card.chat_template,
        add_bos=card.add_bos,
        bos_token=card.bos_token,
        end_tokens=card.end_tokens,
    )

"""Tuples in tokens: the ids that the model is sampled and served with, by the same tokenizer and prompts.

A prompt is encoded as `rrtf_serve.problems.samplers` puts it to a model; an answer goes on from it, as its
own text, and is closed by the token that ends a turn (chat) or a text (plain prompts).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.folder import Card
from rrtf_serve.models.prompts import Prompts, prompts_of
from rrtf_serve.models.tokens import Tokenizer
from rrtf_serve.problems.prompts import Prompt
from training.records import Pair, Tuple


@dataclass(frozen=True)
class Encoded:
    """What a method uses of one tuple. Each answer ends with the end token; pairs and chosen index
    `answers`."""

    name: str
    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    pairs: tuple[Pair, ...]
    chosen: int

    @property
    def shared_tokens(self) -> int:
        """Of a row that holds the prompt once and all answers behind it."""
        return len(self.prompt) + sum(map(len, self.answers))

    @property
    def longest(self) -> int:
        """Tokens of the prompt with its longest answer."""
        return len(self.prompt) + max(map(len, self.answers))


class Encoder:
    """Texts to ids, for one model."""

    def __init__(self, tokenizer: Tokenizer, prompts: Prompts, end_tokens: Sequence[str]) -> None:
        """end_tokens: the model's own, its usual end first. Raises ModelError where none is a token."""
        self._tokenizer = tokenizer
        self._prompts = prompts
        ids = (tokenizer.token_id(token) for token in end_tokens)
        end = next((token for token in ids if token is not None), None)
        if end is None:
            raise ModelError(
                "the model names no end token that its tokenizer has, so answers can't be closed; set "
                "eos_token_id in its generation_config.json"
            )
        self.text_end = end
        self.turn_end = self._closing_token() if prompts.has_chat else end

    @classmethod
    def load(cls, folder: Path, card: Card) -> Encoder:
        """Of a Hugging Face folder. Raises ModelError."""
        tokenizer = Tokenizer.load(folder)
        return cls(tokenizer, prompts_of(card, tokenizer), card.end_tokens)

    def prompt(self, prompt: Prompt) -> list[int]:
        """Raises ValueError where this model can't be asked that way."""
        if prompt.message:
            ids = self._prompts.chat([{"role": "user", "content": prompt.message}])
            return ids + self._tokenizer.encode(prompt.prefill, specials=False, continues=True)
        if prompt.suffix is not None:
            return self._prompts.infill(prompt.text, prompt.suffix)
        return self._prompts.completion(prompt.text)

    def answer(self, text: str, prompt: Prompt) -> list[int]:
        """With the end token. Markers in the text stay text."""
        ids = self._tokenizer.encode(text, specials=False, continues=True)
        return [*ids, self.turn_end if prompt.message else self.text_end]

    def _closing_token(self) -> int:
        """What the chat template puts behind an answer, where that is one of the model's ends."""
        asked = [{"role": "user", "content": "a"}]
        try:
            start = len(self._prompts.chat(asked))
            whole = self._prompts.chat([*asked, {"role": "assistant", "content": "b"}, *asked])
        except ValueError:  # a template that refuses: it will say so again when a prompt is encoded
            return self.text_end
        ends = self._prompts.chat_end_ids
        return next((token for token in whole[start:] if token in ends), self.text_end)


def encode(item: Tuple, method: str, encoder: Encoder) -> Encoded:
    """The part of a tuple that `method` trains on. Raises ValueError naming the task and what is wrong."""
    pairs = all_pairs(item) if method == "rrhf" else item.pairs if method != "sft" else ()
    used = sorted({item.chosen, *(at for pair in pairs for at in pair[:2])})
    place = {at: new for new, at in enumerate(used)}
    try:
        prompt = encoder.prompt(item.prompt)
    except ValueError as error:
        raise ValueError(f"{item.task_id}: {error}") from error
    return Encoded(
        name=f"{item.suite}/{item.task_id}",
        prompt=tuple(prompt),
        answers=tuple(tuple(encoder.answer(item.candidates[at].text, item.prompt)) for at in used),
        pairs=tuple(Pair(place[better], place[worse], weight) for better, worse, weight in pairs),
        chosen=place[item.chosen],
    )


def longest_of(item: Tuple, encoder: Encoder) -> int:
    """Tokens of the prompt with its longest candidate, whether a method uses that one or not.

    Raises ValueError where this model can't be asked that way.
    """
    answers = (encoder.answer(each.text, item.prompt) for each in item.candidates)
    return len(encoder.prompt(item.prompt)) + max(map(len, answers))


def all_pairs(item: Tuple) -> tuple[Pair, ...]:
    """RRHF's (arXiv 2304.05302): every two candidates of different scores, none weighing more."""
    scores = [candidate.score for candidate in item.candidates]
    places = range(len(scores))
    return tuple(Pair(i, j, 1.0) for i in places for j in places if scores[i] > scores[j])

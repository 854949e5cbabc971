"""Text to token ids and back: the tokenizer, the streaming detokenizer and stop strings.

The only place where text is made from tokens, for every engine and every API dialect:

    stream = TextStream(tokenizer, ["\\n\\n"])
    for token in tokens:
        text, stopped = stream.push(token)  # text may be empty while a character or a stop string is open
    text = stream.flush()

Two kinds of vocabulary are read: byte-level BPE (a token's characters stand for bytes, GPT-2's alphabet) and
SentencePiece (a space is U+2581, a byte is `<0xNN>`). Decoding goes through bytes and is done here; encoding
is the tokenizers library's. Nothing here adds a BOS: that belongs to the prompt.
"""

from __future__ import annotations

import codecs
import json
import re
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from rrtf_serve.models.errors import ModelError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE_MARK = "\u2581"
_ID_LIMIT = 1 << 32  # the backend raises on larger ids


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte (github.com/openai/gpt-2, encoder.py), character -> byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    for shift, byte in enumerate(byte for byte in range(256) if byte not in set(printable)):
        alphabet[chr(0x100 + shift)] = byte
    return alphabet


BYTE_ALPHABET = _byte_alphabet()


def well_formed(text: str) -> str:
    """The text with surrogate pairs joined and each lone surrogate replaced by U+FFFD.

    JSON may carry lone surrogates (`"\\ud83d"`); no tokenizer knows them.
    """
    if text.isascii():
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


class Turns:
    """A lock that goes to whoever has waited longest. threading.Lock goes to anybody, so a thread that takes
    it again and again keeps the others out."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self.waiting: deque[threading.Lock] = deque()  # of who waits, each held until it is its turn
        self._held = False

    def __enter__(self) -> None:
        with self._guard:
            if not self._held:
                self._held = True
                return
            turn = threading.Lock()
            turn.acquire()
            self.waiting.append(turn)
        turn.acquire()

    def __exit__(self, *_: object) -> None:
        with self._guard:
            if self.waiting:
                self.waiting.popleft().release()
            else:
                self._held = False


class Tokenizer:
    """A folder's tokenizer.json. Safe to use from several threads."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        """Takes the backend over and changes it. Raises ModelError on a vocabulary of another kind."""
        self._backend = backend
        self._lock = Turns()
        backend.no_truncation()
        backend.no_padding()
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(token for token, entry in added.items() if entry.special)
        # The backend can be told to read special tokens as plain text, but not the other added tokens, so all
        # are made special in there; which of them are skipped on decoding is decided here, by special_ids.
        for entry in added.values():
            entry.special = True
        backend.add_special_tokens(list(added.values()))
        decoder = _state(backend.decoder)
        parts = decoder.get("decoders", [decoder])
        kinds = {part["type"] for part in parts if "type" in part}
        self.byte_level = "ByteLevel" in kinds
        if not self.byte_level and not kinds & {"ByteFallback", "Metaspace"}:
            found = ", ".join(sorted(kinds)) or "none"
            raise ModelError(f"the decoder is {found}; byte-level and SentencePiece vocabularies are read")
        # SentencePiece writes a space before a text's first word; decoding a whole text takes it away again.
        self.strips_first_space = any(
            (part["type"] == "Strip" and part["content"] == " " and part["start"] > 0)
            or (part["type"] == "Metaspace" and part.get("prepend_scheme", "always") != "never")
            for part in parts
        )
        self._with_space = (backend.normalizer, backend.pre_tokenizer)
        self._without_space = self._with_space if self.byte_level else _without_prefix_space(backend)

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read folder/tokenizer.json. Raises ModelError, naming the file, when that can't be done."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ModelError(f"{path}: no such file. Copy tokenizer.json there from the source model.")
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for anything wrong in the file
            advice = "Copy tokenizer.json there from the source model."
            raise ModelError(f"{path}: not a readable tokenizer ({error}). {advice}") from error
        try:
            return cls(backend)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from error

    @property
    def size(self) -> int:
        """Number of entries, added tokens included."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, *, specials: bool, continues: bool = False) -> list[int]:
        """Token ids of a text, never with a BOS or EOS of the tokenizer's own making.

        specials: strings such as `<|im_end|>` in the text become their token; otherwise they stay text.
        continues: the text goes on after other text; SentencePiece's space before the first word is left out.
        Lone surrogates are read as U+FFFD; NUL is a character like others.
        """
        text = well_formed(text)
        with self._lock:
            self._backend.encode_special_tokens = not specials
            if not continues or self.byte_level:
                return self._ids(text)
            self._backend.normalizer, self._backend.pre_tokenizer = self._without_space
            try:
                return self._ids(text)
            finally:
                self._backend.normalizer, self._backend.pre_tokenizer = self._with_space

    def _ids(self, text: str) -> list[int]:
        # Unlike `encode`, this lets other Python threads run meanwhile, and it leaves character offsets out.
        return list(self._backend.encode_batch_fast([text], add_special_tokens=False)[0].ids)

    def decode(self, ids: Iterable[int], *, skip_specials: bool = True) -> str:
        """The whole text of some ids. Bytes that are not UTF-8 become U+FFFD; unknown ids have no text."""
        detokenizer = Detokenizer(self, skip_specials=skip_specials, continues=False)
        parts = [detokenizer.push(token) for token in ids]
        return "".join(parts) + detokenizer.flush()

    def token_id(self, text: str) -> int | None:
        """The id of a vocabulary string, for instance `<|fim_prefix|>`."""
        found = self._backend.token_to_id(well_formed(text))
        return None if found is None else int(found)

    def token_bytes(self, token: int) -> bytes:
        """The exact bytes that a token adds to the text; none for an id outside the vocabulary."""
        entry = self._backend.id_to_token(token) if 0 <= token < _ID_LIMIT else None
        if entry is None:
            return b""
        if self.byte_level:
            try:
                return bytes([BYTE_ALPHABET[character] for character in entry])
            except KeyError:  # an added token holds plain text
                return str(entry).encode("utf-8")
        if match := _BYTE_TOKEN.fullmatch(entry):
            return bytes([int(match[1], 16)])
        return str(entry).replace(_SPACE_MARK, " ").encode("utf-8")


def _state(component: Any) -> dict[str, Any]:
    """A tokenizers component as its JSON object; empty where there is none."""
    state: dict[str, Any] = json.loads(component.__getstate__()) if component is not None else {}
    return state


def _without_prefix_space(backend: tokenizers.Tokenizer) -> tuple[Any, Any]:
    """The normalizer and pre-tokenizer of a SentencePiece tokenizer, less the space before the first word."""

    def strip(node: dict[str, Any]) -> dict[str, Any] | None:
        if not node or node["type"] == "Prepend":
            return None
        if node["type"] == "Metaspace":
            return {**node, "prepend_scheme": "never"}
        for key in ("normalizers", "pretokenizers"):
            if key in node:
                return {**node, key: [kept for child in node[key] if (kept := strip(child)) is not None]}
        return node

    twin: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": strip(_state(backend.normalizer)),
        "pre_tokenizer": strip(_state(backend.pre_tokenizer)),
        "post_processor": None,
        "decoder": None,
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    }
    made = tokenizers.Tokenizer.from_str(json.dumps(twin))
    return made.normalizer, made.pre_tokenizer


class Detokenizer:
    """Token ids to text, one at a time: the joined pieces equal the decoded whole.

    A character's bytes are held back until it is complete (at most three bytes). `continues` keeps the first
    word's space: what a model generates goes on after its prompt.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_specials: bool = True, continues: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_specials else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip_first = tokenizer.strips_first_space and not continues

    def push(self, token: int) -> str:
        """The characters that this token completes."""
        if token in self._skipped:
            return ""
        return self._first(self._decoder.decode(self._tokenizer.token_bytes(token)))

    def flush(self) -> str:
        """U+FFFD where the last character stayed incomplete, else nothing."""
        return self._first(self._decoder.decode(b"", final=True))

    def _first(self, text: str) -> str:
        if self._strip_first and text:
            self._strip_first = False
            return text.removeprefix(" ")
        return text


class StopStrings:
    """Ends a text at the first stop string, wherever the pieces break.

    The first is the one that is complete first; of two complete at the same character, the longer. The result
    does not depend on how the text is cut into pieces. Work per character is constant for each stop (Knuth,
    Morris and Pratt 1977, "Fast pattern matching in strings").
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Raises ValueError on an empty stop string."""
        if any(not stop for stop in stops):
            raise ValueError("stop: a stop string can't be empty")
        self._stops = [(stop, _failures(stop)) for stop in dict.fromkeys(stops)]
        self._matched = [0] * len(self._stops)  # characters of each stop that the text now ends with
        self._held = ""
        self.stopped = False
        self.found = ""  # the stop string that was reached

    def push(self, text: str) -> tuple[str, bool]:
        """Text that is safe to show, and whether a stop string was reached; afterwards nothing more comes."""
        if self.stopped:
            return "", True
        if not self._stops:
            return text, False
        held = len(self._held)
        self._held += text
        for index, character in enumerate(text):
            longest = self._step(character)
            if longest:
                self.stopped = True
                self.found = self._held[held + index + 1 - longest : held + index + 1]
                safe, self._held = self._held[: held + index + 1 - longest], ""
                return safe, True
        keep = max(self._matched)
        safe = self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        return safe, False

    def flush(self) -> str:
        """What was held back, when the text ends without a stop string."""
        held, self._held = self._held, ""
        self._matched = [0] * len(self._stops)
        return held

    def _step(self, character: str) -> int:
        """Take one character in; the length of the longest stop that it completes, or 0."""
        longest = 0
        for which, (stop, failures) in enumerate(self._stops):
            matched = self._matched[which]
            while matched and stop[matched] != character:
                matched = failures[matched - 1]
            if stop[matched] == character:
                matched += 1
            self._matched[which] = matched
            if matched == len(stop):
                longest = max(longest, matched)
        return longest


def _failures(stop: str) -> list[int]:
    """For each prefix of the stop, the length of its longest proper prefix that also ends it."""
    failures = [0] * len(stop)
    matched = 0
    for index in range(1, len(stop)):
        while matched and stop[matched] != stop[index]:
            matched = failures[matched - 1]
        if stop[matched] == stop[index]:
            matched += 1
        failures[index] = matched
    return failures


class TextStream:
    """Tokens in, text out, ended by stop strings: a detokenizer and stop strings in one.

    `offset` counts the characters decoded before the token pushed last, held back or not: where that token's
    text begins.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stops: Sequence[str] = (),
        *,
        skip_specials: bool = True,
        continues: bool = True,
    ) -> None:
        self._detokenizer = Detokenizer(tokenizer, skip_specials=skip_specials, continues=continues)
        self._stops = StopStrings(stops)
        self._decoded = 0
        self.offset = 0

    @property
    def stopped(self) -> bool:
        return self._stops.stopped

    @property
    def stop(self) -> str:
        """The stop string that was reached; none so far: empty."""
        return self._stops.found

    def push(self, token: int) -> tuple[str, bool]:
        """Text that is safe to show after this token, and whether a stop string was reached."""
        text = self._detokenizer.push(token)
        self.offset = self._decoded
        self._decoded += len(text)
        return self._stops.push(text)

    def flush(self) -> str:
        """The rest, when generation ended by itself."""
        text, _ = self._stops.push(self._detokenizer.flush())
        return text + self._stops.flush()

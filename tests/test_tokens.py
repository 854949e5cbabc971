from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tokenizers
from hypothesis import assume, given, settings, strategies
from nasty import TEXTS, texts
from tiny_gguf import byte_level_fields, sentencepiece_fields, write_gguf

from convert.gguf_metadata import read_metadata
from convert.tokenizer import write_tokenizer
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.tokens import Detokenizer, StopStrings, TextStream, Tokenizer, Turns, well_formed

WORDS = ["▁the", "▁is", "▁def", "▁return", "ing", "▁▁", "hello", "▁hello", "é", "好"]


@pytest.fixture(
    scope="session", params=["bytes", "pieces", "smollm2", pytest.param("qwen", marks=pytest.mark.slow)]
)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tokenizer.json: a small byte-level one, a small SentencePiece one, or a real model's."""
    made = tmp_path_factory.mktemp(request.param)
    if request.param == "bytes":
        text = Path(__file__).read_text("utf-8")
        path = write_gguf(made / "a.gguf", byte_level_fields("starcoder", ["<|end|>", "<｜x▁y｜>"], text))  # noqa: RUF001
    elif request.param == "pieces":
        path = write_gguf(made / "a.gguf", sentencepiece_fields(WORDS))
    else:
        path = request.getfixturevalue(f"{request.param}_source").path
    write_tokenizer(read_metadata(path), made)
    return made


@pytest.fixture(scope="session")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


@pytest.fixture(scope="session")
def library(folder: Path) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture(scope="session")
def bytes_known(tokenizer: Tokenizer) -> frozenset[int]:
    """SmolLM2's vocabulary lacks some bytes (control characters); the model has no way to read them."""
    return frozenset(
        part[0] for token in range(tokenizer.size) if len(part := tokenizer.token_bytes(token)) == 1
    )


def streamed(detokenizer: Detokenizer, ids: list[int]) -> Iterator[str]:
    for token in ids:
        yield detokenizer.push(token)
    yield detokenizer.flush()


def invalid_byte_run(tokenizer: Tokenizer, ids: list[int]) -> bool:
    """Whether the library decodes otherwise on purpose: SentencePiece bytes that are not UTF-8.

    It gives one U+FFFD for every byte of such a run, good characters in it too, which no stream can know.
    """
    return not tokenizer.byte_level and "\ufffd" in tokenizer.decode(ids, skip_specials=False)


@pytest.mark.parametrize("skip", [True, False])
@given(data=strategies.data())
@settings(max_examples=300, deadline=None)
def test_joined_deltas_are_the_decoded_whole(
    tokenizer: Tokenizer, library: tokenizers.Tokenizer, skip: bool, data: strategies.DataObject
) -> None:
    ids = data.draw(strategies.lists(strategies.integers(0, tokenizer.size - 1), max_size=40))
    whole = tokenizer.decode(ids, skip_specials=skip)
    assert "".join(streamed(Detokenizer(tokenizer, skip_specials=skip, continues=False), ids)) == whole
    if not invalid_byte_run(tokenizer, ids):
        assert whole == library.decode(ids, skip_special_tokens=skip)


@given(text=texts, more=texts)
@settings(max_examples=300, deadline=None)
def test_text_comes_back_as_it_went(
    tokenizer: Tokenizer, bytes_known: frozenset[int], text: str, more: str
) -> None:
    assume(bytes_known.issuperset((text + more).encode()))
    if tokenizer.decode(tokenizer.encode("\u2581", specials=False)) != "\u2581":
        assume("\u2581" not in text + more)  # SentencePiece can't tell it from the space that it stands for
    normal = tokenizer._backend.normalizer
    if isinstance(normal, tokenizers.normalizers.NFC):
        text, more = normal.normalize_str(text), normal.normalize_str(more)
    plain = tokenizer.encode(text, specials=False)
    assert not tokenizer.special_ids & set(plain)
    assert tokenizer.decode(plain) == text
    # a completion goes on after its prompt: no space lost or doubled at the border
    going_on = tokenizer.encode(more, specials=False, continues=True)
    assert text + "".join(streamed(Detokenizer(tokenizer), going_on)) == text + more


@pytest.mark.parametrize("text", TEXTS)
def test_no_delta_shows_a_part_of_a_character(tokenizer: Tokenizer, text: str) -> None:
    detokenizer = Detokenizer(tokenizer)
    for token in tokenizer.encode(text, specials=False, continues=True):
        assert "\ufffd" not in detokenizer.push(token)
    assert detokenizer.flush() == ""


def test_a_character_cut_short_shows_at_the_end_only(tokenizer: Tokenizer) -> None:
    first = next(
        token for token in range(tokenizer.size) if tokenizer.token_bytes(token) == "好".encode()[:1]
    )
    detokenizer = Detokenizer(tokenizer)
    assert detokenizer.push(first) == ""
    assert detokenizer.flush() == "\ufffd"


def test_special_tokens_are_read_or_not_and_skipped_or_not(tokenizer: Tokenizer) -> None:
    for special in tokenizer.special_ids:
        text = tokenizer.decode([special], skip_specials=False)
        assert tokenizer.token_id(text) == special
        assert tokenizer.encode(text, specials=True) == [special]
        assert special not in tokenizer.encode(text, specials=False)
        assert tokenizer.decode([special]) == ""


def test_added_tokens_that_are_not_special_stay_text_too(tmp_path: Path) -> None:
    fields = byte_level_fields("qwen2", ["<|end|>", "<tool_call>"], "some text")
    fields["ggml.token_type"][-3] = 4
    write_tokenizer(read_metadata(write_gguf(tmp_path / "a.gguf", fields)), tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    call = tokenizer.token_id("<tool_call>")
    assert tokenizer.encode("<tool_call>", specials=True) == [call]
    assert call not in tokenizer.encode("<tool_call>", specials=False)
    assert call is not None
    assert tokenizer.decode([call]) == "<tool_call>"


def test_no_bos_is_added_by_a_post_processor(tmp_path: Path) -> None:
    write_tokenizer(read_metadata(write_gguf(tmp_path / "a.gguf", sentencepiece_fields(WORDS))), tmp_path)
    path = tmp_path / "tokenizer.json"
    built = tokenizers.Tokenizer.from_file(str(path))
    built.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    built.enable_truncation(3)
    built.enable_padding(length=9)
    built.save(str(path))
    ids = Tokenizer.load(tmp_path).encode("hello hello hello hello hello", specials=True)
    assert 1 not in ids
    assert len(ids) == 5


@pytest.mark.parametrize("decoder", ["strip", "metaspace"])
def test_sentencepiece_space_rules(tmp_path: Path, decoder: str) -> None:
    """Both ways in which tokenizer.json files write the space before the first word."""
    write_tokenizer(read_metadata(write_gguf(tmp_path / "a.gguf", sentencepiece_fields(WORDS))), tmp_path)
    if decoder == "metaspace":
        path = tmp_path / "tokenizer.json"
        built = json.loads(path.read_text("utf-8"))
        space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
        built |= {"normalizer": None, "pre_tokenizer": space, "decoder": space}
        path.write_text(json.dumps(built), "utf-8")
    tokenizer = Tokenizer.load(tmp_path)
    word, going_on = tokenizer.token_id("▁hello"), tokenizer.token_id("hello")
    assert word is not None
    assert tokenizer.encode("hello", specials=False) == [word]
    assert tokenizer.encode("hello", specials=False, continues=True) == [going_on]
    assert tokenizer.encode("hello", specials=False) == [word]  # the other way left no trace
    assert tokenizer.decode([word, word]) == "hello hello"
    assert "".join(streamed(Detokenizer(tokenizer, continues=True), [word, word])) == " hello hello"
    assert "".join(streamed(Detokenizer(tokenizer, continues=False), [1, word])) == "hello"


def test_lone_surrogates_and_nul(tokenizer: Tokenizer) -> None:
    assert well_formed("a\ud83d\ude00b") == "a😀b"
    assert well_formed("a\ud83db\udc00") == "a\ufffdb\ufffd"
    for text in ("\ud83d", "a\udc00b", "\x00a\x00"):
        assert tokenizer.decode(tokenizer.encode(text, specials=True)) == well_formed(text)
    assert tokenizer.token_id("\ud83d") is None


def test_ids_outside_the_vocabulary_have_no_text(tokenizer: Tokenizer) -> None:
    assert [tokenizer.token_bytes(token) for token in (-1, tokenizer.size, 2**40)] == [b"", b"", b""]
    assert tokenizer.decode([-1, 10**7]) == ""


def test_threads_do_not_mix_up_specials(tokenizer: Tokenizer) -> None:
    special = tokenizer.decode([min(tokenizer.special_ids)], skip_specials=False)
    expected = {specials: tokenizer.encode(special, specials=specials) for specials in (True, False)}
    wrong: list[bool] = []

    def work(specials: bool) -> None:
        for _ in range(300):
            if tokenizer.encode(special, specials=specials) != expected[specials]:
                wrong.append(specials)

    threads = [threading.Thread(target=work, args=(bool(number % 2),)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_lock_goes_to_who_waited_longest_and_not_to_who_takes_it_again() -> None:
    turns, order = Turns(), []

    def take(name: str) -> None:
        with turns:
            order.append(name)

    others = [threading.Thread(target=take, args=(name,)) for name in ("first", "second")]
    with turns:
        for waiting, thread in enumerate(others, 1):
            thread.start()
            while len(turns.waiting) < waiting:
                time.sleep(0.001)
    take("again")
    for thread in others:
        thread.join()
    assert order == ["first", "second", "again"]
    take("free")
    assert order[-1] == "free"


def test_absent_broken_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.json: no such file.*source model"):
        Tokenizer.load(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text('{"version": ')
    with pytest.raises(ModelError, match=r"tokenizer\.json: not a readable tokenizer"):
        Tokenizer.load(tmp_path)
    tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a")).save(str(path))
    with pytest.raises(ModelError, match=r"tokenizer\.json: the decoder is none"):
        Tokenizer.load(tmp_path)


def naive_stop(text: str, stops: list[str]) -> tuple[str, bool]:
    """By definition: go through the text a character at a time, end at the first stop that is complete."""
    for end in range(len(text) + 1):
        ends = [stop for stop in stops if text[:end].endswith(stop)]
        if ends:
            return text[: end - max(map(len, ends))], True
    return text, False


few = strategies.text(alphabet="ab\n", max_size=30)


@given(chunks=strategies.lists(few, max_size=12), stops=strategies.lists(few.filter(bool), max_size=4))
@settings(max_examples=2000, deadline=None)
def test_stop_strings_by_their_definition(chunks: list[str], stops: list[str]) -> None:
    watcher = StopStrings(stops)
    shown = ""
    text = ""
    for chunk in chunks:
        piece, stopped = watcher.push(chunk)
        shown += piece
        text += chunk
        assert (shown, stopped) == naive_stop(text, stops) or not stopped
        if stopped:
            break
        held = text[len(shown) :]
        assert not held or any(stop.startswith(held) for stop in stops)  # no more is held back than must be
    shown += watcher.flush()
    assert (shown, watcher.stopped) == naive_stop("".join(chunks), stops)


@given(text=few, stop=few.filter(bool))
def test_one_stop_string_equals_find(text: str, stop: str) -> None:
    watcher = StopStrings([stop])
    shown = "".join(watcher.push(character)[0] for character in text) + watcher.flush()
    at = text.find(stop)
    assert shown == (text if at < 0 else text[:at])


def test_nothing_comes_after_a_stop_and_empty_stops_are_refused() -> None:
    watcher = StopStrings(["b"])
    assert watcher.push("abc") == ("a", True)
    assert watcher.push("more") == ("", True)
    assert watcher.flush() == ""
    with pytest.raises(ValueError, match="stop"):
        StopStrings(["a", ""])


def test_text_stream_stops_across_token_borders(tokenizer: Tokenizer) -> None:
    text = "the return is hello\n\nmore"
    ids = tokenizer.encode(text, specials=False, continues=True)
    for stops, expected in ((["\n\nm"], "the return is hello"), (["hell"], "the return is "), ([], text)):
        stream = TextStream(tokenizer, stops)
        shown = ""
        for token in ids:
            piece, stopped = stream.push(token)
            shown += piece
            if stopped:
                break
        assert stream.stopped == bool(stops)
        assert shown + stream.flush() == expected


def test_text_stream_tells_where_each_token_begins(tokenizer: Tokenizer) -> None:
    text = "the 好 is hello"
    stream = TextStream(tokenizer, ["zzz"])
    whole = tokenizer.encode(text, specials=False, continues=True)
    offsets = []
    for token in whole:
        stream.push(token)
        offsets.append(stream.offset)
    assert offsets[0] == 0
    for token, begin in zip(whole, offsets, strict=True):
        part = tokenizer.token_bytes(token)
        if not part[:1] or part[0] >= 0x80:
            continue
        assert text[begin:].encode().startswith(part)


def test_long_streams_take_time_in_proportion(tokenizer: Tokenizer) -> None:
    """Work per token does not grow with the stream: what is held stays small."""
    dice = random.Random(0)
    stream = TextStream(tokenizer, ["\n\n\n\n\n"])
    for _ in range(20_000):
        stream.push(dice.randrange(tokenizer.size))
        assert len(stream._stops._held) < 5

"""Keys: what a file may hold, what it may not, and what happens when it changes while the server runs."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrtf_serve.api.keys import Key, Keyring, digest_of, read_file, read_variable


def names(ring: Keyring, *keys: str) -> list[str | None]:
    found = [ring.find(key.encode()) for key in keys]
    return [None if key is None else key.name for key in found]


@pytest.mark.parametrize(
    ("line", "name", "key"),
    [
        ("alice:sesame", "alice", "sesame"),
        ("alice: sesame", "alice", "sesame"),
        ("alice = sesame", "alice", "sesame"),
        ("  alice@example.org  =  sesame  ", "alice@example.org", "sesame"),
        ("ci-1:a:b", "ci-1", "a:b"),
        ("team = sk-abc==", "team", "sk-abc=="),
        ("c2VzYW1l==", None, "c2VzYW1l=="),
        ("four#4", None, "four#4"),
        ("two words", None, "two words"),
        ("schlüssel", None, "schlüssel"),
    ],
)
def test_a_line_is_a_name_and_a_key_or_a_key(tmp_path: Path, line: str, name: str | None, key: str) -> None:
    path = tmp_path / "keys"
    path.write_text(f"\ufeff# the team\n\n{line}\n", "utf-8")
    (found,) = read_file(path)
    assert found == Key(name or f"key-{digest_of(key.encode())[:8]}", digest_of(key.encode()))
    assert read_variable(line) == (found,)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "holds no key"),
        (b"# nobody\n\n", "holds no key"),
        (b"\xff\xfe", "not UTF-8"),
        (b"one\nalice:\n", "line 2: no key after the name"),
        (b"alice =\n", "line 1: no key after the name"),
        (b"al/ice:sesame\n", "line 1: the name"),
        (b"a" * 65 + b":sesame\n", "line 1: the name"),
        (b"ses\x07ame\n", "line 1: .*control character"),
        (b"alice:sesame\nbob:sesame\n", "one key has two names, alice and bob"),
    ],
)
def test_a_wrong_file_is_refused_without_showing_keys(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "keys"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"--api-key-file .*{problem}") as refusal:
        Keyring(file=path)
    assert "sesame" not in str(refusal.value)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--api-key-file .*absent: No such file"):
        Keyring(file=tmp_path / "absent")


@pytest.mark.parametrize("value", [",", " , ", "alice:"])
def test_a_variable_without_a_key_never_opens_the_server(value: str) -> None:
    with pytest.raises(ValueError, match="RRTF_API_KEYS"):
        read_variable(value)
    assert read_variable("") == ()


def test_one_key_under_two_names_in_two_places_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("bob:sesame\n")
    with pytest.raises(ValueError, match="alice and bob"):
        Keyring(read_variable("alice:sesame"), file=path)


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=12), max_size=4))
def test_a_variable_gives_keys_or_a_reason(items: list[str]) -> None:
    value = ",".join(items)
    try:
        keys = read_variable(value)
    except ValueError as error:
        assert "RRTF_API_KEYS" in str(error)
    else:
        assert bool(keys) == bool(value)
        assert len({key.digest for key in keys}) >= bool(keys)


def test_keys_are_told_apart_and_none_is_needed_where_none_was_set(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("bob:two\n")
    ring = Keyring(read_variable("one,alice:three"), file=path)
    assert ring.required
    anonymous = f"key-{digest_of(b'one')[:8]}"
    assert names(ring, "one", "two", "three", "tw", "twoo", "") == [
        anonymous,
        "bob",
        "alice",
        None,
        None,
        None,
    ]
    assert not Keyring().required
    assert names(Keyring(), "one") == [None]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text("alice:one\n")
    return path


def test_a_changed_file_is_read_again(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    ring = Keyring(file=file, poll_seconds=0)
    file.write_text("alice:one\nbob:two\n")
    with caplog.at_level(logging.INFO):
        assert names(ring, "one", "two") == ["alice", "bob"]
        file.write_text("bob:two\n")
        assert names(ring, "one", "two") == [None, "bob"]
    assert [record.message for record in caplog.records] == [
        "API keys read again: added ['bob']; removed none",
        "API keys read again: added none; removed ['alice']",
    ]


def test_a_change_that_leaves_size_and_time_as_they_were_is_seen_while_the_file_is_fresh(file: Path) -> None:
    ring = Keyring(file=file, poll_seconds=0)
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    file.write_text("alice:two\n")
    os.utime(file, ns=times)
    assert names(ring, "one", "two") == [None, "alice"]


def test_a_file_put_in_place_of_an_old_one_is_seen(file: Path, tmp_path: Path) -> None:
    os.utime(file, (1e9, 1e9))
    ring = Keyring(file=file, poll_seconds=0)
    other = tmp_path / "new"
    other.write_text("alice:two\n")
    os.utime(other, (1e9, 1e9))
    other.rename(file)
    assert names(ring, "one", "two") == [None, "alice"]


def test_the_file_is_not_looked_at_more_often_than_told(file: Path) -> None:
    ring = Keyring(file=file, poll_seconds=3600)
    file.write_text("alice:two\n")
    assert names(ring, "one", "two") == ["alice", None]
    ring.reload()  # as SIGHUP does
    assert names(ring, "one", "two") == [None, "alice"]


@pytest.mark.parametrize("content", [b"", b"# all gone\n", b"\xff", b"alice:\n", None])
def test_a_broken_file_keeps_the_keys_and_is_said_once(
    file: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    ring = Keyring(file=file, poll_seconds=0)
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    assert names(ring, "one", "other") == ["alice", None]
    assert names(ring, "one", "") == ["alice", None]
    assert ring.required
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "the keys stay as they were" in record.message
    file.write_text("bob:two\n")
    assert names(ring, "one", "two") == [None, "bob"]


def test_the_page_has_a_key_for_each_visitors_for_as_long_as_theirs_is_one(file: Path) -> None:
    ring = Keyring(file=file, poll_seconds=0)
    file.write_text("alice:one\nbob:two\n")
    assert ring.page_key("three") is None
    assert ring.page_key("\ud800") is None
    alices, bobs = ring.page_key("one"), ring.page_key("two")
    assert alices is not None and bobs is not None and alices != bobs
    assert names(ring, alices, bobs) == ["alice", "bob"], "the page acts in its visitors' names"
    assert ring.find(alices.encode()) == ring.find(b"one")
    file.write_text("bob:two\ncarol:three\n")
    assert not ring.holds(alices)
    assert ring.holds(bobs)
    assert ring.page_key("two") == bobs
    other = Keyring(file=file)
    assert not other.holds(bobs), "another start has other ones"

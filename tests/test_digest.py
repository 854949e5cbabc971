"""A folder's digest: its model's files, and not what was written about it afterwards."""

from __future__ import annotations

from pathlib import Path

from rrtf_serve.models.digest import Verified, folder_digest


def test_the_card_is_no_part_of_the_model(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}", "utf-8")
    verified = Verified(tmp_path / "verified")
    before = folder_digest(folder, verified)
    (folder / "rrtf.json").write_text('{"parity": 1}', "utf-8")
    assert folder_digest(folder, verified) == before
    (folder / "config.json").write_text('{"a": 1}', "utf-8")
    assert folder_digest(folder, verified) != before

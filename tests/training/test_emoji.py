from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from msf_training.emoji import STARTS, write_class_folders


def pack(file: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(file, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def test_tones_are_variants_of_one_picture_in_the_class_of_its_kind(tmp_path: Path) -> None:
    others = {chr(0x20000 + place): {"slug": slug} for place, (slug, _) in enumerate(STARTS)}
    hands = {"\U0001f44b": {"slug": "waving_hand"}, "\U0001f91a": {"slug": "raised_back_of_hand"}}
    order = [slug for slug, _ in STARTS].index("waving_hand")
    names = dict([*list(others.items())[:order], *hands.items(), *list(others.items())[order + 1 :]])
    pack(tmp_path / "unicode-emoji-json-1.0.0.tgz", {"data-by-emoji.json": json.dumps(names).encode()})
    images = {"assets/1f44b.webp": b"a", "assets/1f44b-1f3fb.webp": b"b", "assets/1f91a.webp": b"c", "README.md": b""}
    pack(tmp_path / "lobehub-fluent-emoji-3d-1.0.0.tgz", images)
    assert write_class_folders(tmp_path, tmp_path / "out") == 3
    written = {str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*.webp")}
    names = json.loads((tmp_path / "out/names.json").read_text())
    assert (names["1f44b"], names["1f91a"]) == ("waving hand", "raised back of hand")
    assert written == {"hand/1f44b--1f44b.webp", "hand/1f44b--1f44b-1f3fb.webp", "hand/1f91a--1f91a.webp"}


def test_what_is_not_fetched_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="make data-emoji"):
        write_class_folders(tmp_path, tmp_path / "out")

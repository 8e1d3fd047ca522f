"""A damaged version is refused with its reason, and only that version."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from msf_engine.errors import ModelRepositoryError
from msf_engine.plan_cache import PlanCache
from msf_engine.plan_loader import load_version
from msf_engine.repository import find_models, list_versions, read_version
from msf_engine.repository_scan import scan
from tests.damaged_models import IN_FILES, IN_FOLDERS, IN_WEIGHTS, Damage


@pytest.fixture
def second(repository: Path) -> Path:
    """A second version of the model."""
    return Path(shutil.copytree(repository / "tiny" / "1", repository / "tiny" / "9"))


@pytest.mark.parametrize("damage", IN_FILES.values(), ids=IN_FILES.keys())
def test_damage_is_found_without_the_networks(repository: Path, second: Path, damage: Damage) -> None:
    damage(second)
    with pytest.raises(ModelRepositoryError, match=r"tiny/9"):
        read_version(repository, "tiny", "9").verify()
    read_version(repository, "tiny", "1").verify()


@pytest.mark.parametrize("damage", IN_WEIGHTS.values(), ids=IN_WEIGHTS.keys())
def test_damage_with_right_checksums_is_found_before_anything_is_compiled(
    repository: Path, second: Path, damage: Damage, tmp_path: Path
) -> None:
    damage(second)
    with pytest.raises(ModelRepositoryError, match=r"tiny[:/]9"):
        load_version(read_version(repository, "tiny", "9"), "eager", "fp32", 1, PlanCache(tmp_path / "plans"), (2,))
    assert not list((tmp_path / "plans").glob("*/plan.json"))


@pytest.mark.parametrize("damage", IN_FOLDERS.values(), ids=IN_FOLDERS.keys())
def test_what_is_no_folder_is_refused(repository: Path, second: Path, damage: Damage) -> None:
    damage(second)
    contents = scan(repository)
    assert contents.versions == [("tiny", "1")]
    assert contents.refusals["tiny", "9"].startswith("the folder cannot be read: ")


@pytest.mark.parametrize("name", ["²", "007", "٣", "9" * 30, "½"])
def test_a_folder_of_an_impossible_version_is_named(repository: Path, name: str) -> None:
    shutil.copytree(repository / "tiny" / "1", repository / "tiny" / name)
    contents = scan(repository)
    assert contents.versions == [("tiny", "1")]
    assert "a version is a whole number" in contents.refusals["tiny", name]


def test_a_folder_of_an_impossible_model_is_named(repository: Path) -> None:
    for name in ("UPPER", "a b", os.fsdecode(b"\xff")):
        shutil.copytree(repository / "tiny", repository / name)
    (repository / "007").mkdir()
    (repository / "loop").symlink_to("loop")
    contents = scan(repository)
    assert contents.versions == [("tiny", "1")]
    assert set(contents.refusals) == {("UPPER", "1"), ("a b", "1"), (r"\xff", "1"), ("007", ""), ("loop", "")}
    json.dumps([*contents.refusals]).encode()


def test_folders_that_are_no_models_are_skipped(repository: Path) -> None:
    for name in ("lost+found", ".hidden/1", "tiny/.partial", "tiny/old"):
        (repository / name).mkdir(parents=True)
    (repository / "readme.md").write_text("a file")
    (repository / "notes").symlink_to("readme.md")
    assert scan(repository).refusals == {}
    assert list_versions(repository) == [("tiny", "1")]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_folder_that_cannot_be_read_is_named(repository: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    for name in ("bad/1", "lost+found"):
        (repository / name).mkdir(parents=True)
    read = os.scandir

    def fail(folder: str | os.PathLike[str]) -> object:
        if os.fspath(folder).endswith(("/bad", "/lost+found")):
            raise OSError(number, os.strerror(number))
        return read(folder)

    monkeypatch.setattr(os, "scandir", fail)
    contents = scan(repository)
    assert contents.versions == [("tiny", "1")]
    assert contents.refusals == {("bad", ""): f"the folder cannot be read: {os.strerror(number)}"}


@pytest.mark.parametrize("labels", ['["a", "\\ud800", "c"]', '["a", " ", "c"]', '["a", "b\\n", "c"]', "[" * 100_000])
def test_labels_that_no_client_can_be_sent_are_refused(repository: Path, labels: str) -> None:
    (repository / "tiny" / "labels.json").write_text(labels)
    with pytest.raises(ModelRepositoryError, match=r"labels\.json"):
        find_models(repository)

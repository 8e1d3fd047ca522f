from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from msf_engine import revisions
from msf_engine.errors import PlanError
from msf_engine.plan import PlanSpec
from msf_engine.plan_cache import PlanCache, PlanRecord, StoredPlan
from msf_scheduler.stage import Stage

SPEC = PlanSpec("tiny:1", "weights", Stage.BASE, True, (2,), (((2, 2, 2), "float32"),))
HERE = "eager on this CPU"


def stored(artefact: bytes, fingerprint: str = HERE) -> StoredPlan:
    sha256 = hashlib.sha256(artefact).hexdigest()
    record = PlanRecord("tiny:1", str(SPEC), "eager", "fp32", fingerprint, len(artefact), sha256, "2026-01-01", 0.5)
    return StoredPlan(artefact, record)


Change = Callable[[PlanSpec, str], tuple[PlanSpec, str]]


@pytest.mark.parametrize(
    "change",
    [
        lambda spec, fingerprint: (replace(spec, buckets=(4,)), fingerprint),
        lambda spec, fingerprint: (replace(spec, guided=False), fingerprint),
        lambda spec, fingerprint: (replace(spec, stage=Stage.RESIDUAL), fingerprint),
        lambda spec, fingerprint: (replace(spec, model_digest="other weights"), fingerprint),
        lambda spec, fingerprint: (spec, "eager on another CPU"),
    ],
)
def test_a_plan_is_found_only_for_what_it_was_built_for(tmp_path: Path, change: Change) -> None:
    cache = PlanCache(tmp_path)
    cache.put(SPEC, stored(b"plan"))
    assert cache.get(SPEC, HERE) == stored(b"plan")
    assert cache.get(*change(SPEC, HERE)) is None


def test_another_revision_of_the_networks_does_not_find_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = PlanCache(tmp_path)
    cache.put(SPEC, stored(b"plan"))
    monkeypatch.setattr(revisions, "NETWORK_REVISION", revisions.NETWORK_REVISION + 1)
    assert cache.get(SPEC, HERE) is None


def test_storing_a_plan_again_replaces_the_first(tmp_path: Path) -> None:
    cache = PlanCache(tmp_path)
    cache.put(SPEC, stored(b"first"))
    cache.put(SPEC, stored(b"second"))
    assert cache.get(SPEC, HERE) == stored(b"second")
    assert sorted(file.name for file in tmp_path.rglob("*") if file.is_file()) == ["plan.bin", "plan.json"]


@pytest.mark.parametrize("file", ["plan.bin", "plan.json"])
def test_every_flipped_byte_is_detected_or_harmless(tmp_path: Path, file: str) -> None:
    cache = PlanCache(tmp_path)
    cache.put(SPEC, stored(b"plan"))
    (path,) = tmp_path.rglob(file)
    good = path.read_bytes()
    for position in range(len(good)):
        path.parent.mkdir(exist_ok=True)
        cache.put(SPEC, stored(b"plan"))
        path.write_bytes(good[:position] + bytes([good[position] ^ 0x20]) + good[position + 1 :])
        entry = cache.get(SPEC, HERE)
        assert entry is None or entry.artefact == b"plan"


def test_beyond_its_limit_the_cache_removes_the_least_recently_read_plans(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = PlanCache(tmp_path, limit_bytes=10)
    specs = [replace(SPEC, buckets=(bucket,)) for bucket in (1, 2, 4)]
    for age, spec in zip((300, 100, 200), specs, strict=True):
        cache.put(spec, stored(b"four"))
        newest = max(tmp_path.glob("*/plan.bin"), key=lambda file: file.parent.stat().st_mtime).parent
        os.utime(newest, (0, newest.stat().st_mtime - age))
        if spec is specs[1]:
            assert cache.get(specs[0], HERE) is not None  # read, so it counts as new
    with caplog.at_level(logging.WARNING):
        assert [cache.get(spec, HERE) is not None for spec in specs] == [True, False, True]


def test_the_error_names_a_folder_that_is_not_writable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PlanError, match=r"plan cache .*file cannot be written"):
        PlanCache(tmp_path / "file").put(SPEC, stored(b"plan"))
    with (
        pytest.raises(PlanError, match=r"plan cache .*file cannot be written"),
        PlanCache(tmp_path / "file").building(SPEC, HERE),
    ):
        pass


def _build(folder: Path) -> None:
    cache = PlanCache(folder)
    with cache.building(SPEC, HERE):
        if cache.get(SPEC, HERE) is None:
            with (folder / "built").open("a") as built:
                built.write(f"{os.getpid()}\n")
            cache.put(SPEC, stored(b"plan"))


def test_one_of_several_processes_builds_a_plan(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_build, args=(tmp_path,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert len((tmp_path / "built").read_text().splitlines()) == 1

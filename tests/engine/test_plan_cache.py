from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from msf_engine import revisions
from msf_engine.errors import PlanError
from msf_engine.plan import PlanSpec
from msf_engine.plan_cache import PlanCache, PlanRecord, StoredPlan, folder_digest
from msf_scheduler.stage import Stage

SPEC = PlanSpec("tiny:1", "weights", Stage.BASE, (2,), (((2, 2, 2), "float32"),))
HERE = "eager on this CPU"


def put(cache: PlanCache, content: bytes, spec: PlanSpec = SPEC) -> StoredPlan:
    """Store a plan of one file, as a builder does."""
    with cache.building(spec, HERE) as folder:
        return _put(cache, content, spec, folder)


def _put(cache: PlanCache, content: bytes, spec: PlanSpec, folder: Path) -> StoredPlan:
    files = folder / "plan"
    files.mkdir()
    (files / "graph").write_bytes(content)
    digest = folder_digest(files)
    record = PlanRecord("tiny:1", str(spec.stage), "eager", "fp32", HERE, len(content), digest, "2026-01-01", 0.5)
    return cache.put(spec, record, files)


def content_of(stored: StoredPlan | None) -> bytes | None:
    return stored and (stored.folder / "graph").read_bytes()


Change = Callable[[PlanSpec, str], tuple[PlanSpec, str]]


@pytest.mark.parametrize(
    "change",
    [
        lambda spec, fingerprint: (replace(spec, buckets=(4,)), fingerprint),
        lambda spec, fingerprint: (replace(spec, stage=Stage.RESIDUAL), fingerprint),
        lambda spec, fingerprint: (replace(spec, network_digest="other weights"), fingerprint),
        lambda spec, fingerprint: (replace(spec, inputs=(((2, 4, 4), "float32"),)), fingerprint),
        lambda spec, fingerprint: (spec, "eager on another CPU"),
    ],
)
def test_a_plan_is_found_only_for_what_it_was_built_for(tmp_path: Path, change: Change) -> None:
    cache = PlanCache(tmp_path)
    stored = put(cache, b"plan")
    assert cache.get(SPEC, HERE) == stored
    assert content_of(stored) == b"plan"
    assert cache.get(*change(SPEC, HERE)) is None


def test_a_plan_is_found_by_any_model_with_its_network(tmp_path: Path) -> None:
    cache = PlanCache(tmp_path)
    put(cache, b"plan")
    assert content_of(cache.get(replace(SPEC, model="other:7"), HERE)) == b"plan"


def test_another_revision_of_the_networks_does_not_find_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = PlanCache(tmp_path)
    put(cache, b"plan")
    monkeypatch.setattr(revisions, "NETWORK_REVISION", revisions.NETWORK_REVISION + 1)
    assert cache.get(SPEC, HERE) is None


def test_storing_a_plan_again_replaces_the_first(tmp_path: Path) -> None:
    cache = PlanCache(tmp_path)
    put(cache, b"first")
    put(cache, b"second")
    assert content_of(cache.get(SPEC, HERE)) == b"second"
    assert sorted(file.name for file in tmp_path.glob("*/**/*") if file.is_file()) == ["graph", "plan.json"]


@pytest.mark.parametrize("file", ["graph", "plan.json"])
def test_every_flipped_byte_is_detected_or_harmless(tmp_path: Path, file: str) -> None:
    cache = PlanCache(tmp_path)
    put(cache, b"plan")
    (path,) = tmp_path.rglob(file)
    good = path.read_bytes()
    for position in range(len(good)):
        put(cache, b"plan")
        path.write_bytes(good[:position] + bytes([good[position] ^ 0x20]) + good[position + 1 :])
        assert content_of(cache.get(SPEC, HERE)) in (None, b"plan")


def test_a_missing_file_is_detected_and_what_a_runtime_adds_in_folders_is_not(tmp_path: Path) -> None:
    cache = PlanCache(tmp_path)
    folder = put(cache, b"plan").folder
    (folder / "compiled").mkdir()
    (folder / "compiled" / "kernel.blob").write_bytes(b"kernel")
    assert content_of(cache.get(SPEC, HERE)) == b"plan"
    (folder / "graph").unlink()
    assert cache.get(SPEC, HERE) is None
    assert not folder.exists()


def test_beyond_its_limit_the_cache_removes_the_least_recently_read_plans(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record_bytes = (put(PlanCache(tmp_path / "other"), b"four").folder.parent / "plan.json").stat().st_size
    cache = PlanCache(tmp_path / "cache", limit_bytes=2 * (record_bytes + 4))
    specs = [replace(SPEC, buckets=(bucket,)) for bucket in (1, 2, 4)]
    for age, spec in zip((300, 100, 200), specs, strict=True):
        entry = put(cache, b"four", spec).folder.parent
        os.utime(entry, (0, entry.stat().st_mtime - age))
        if spec is specs[1]:
            assert cache.get(specs[0], HERE) is not None  # read, so it counts as new
    with caplog.at_level(logging.WARNING):
        assert [cache.get(spec, HERE) is not None for spec in specs] == [True, False, True]


def test_the_error_names_a_folder_that_is_not_writable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PlanError, match=r"plan cache .*file cannot be written"):
        put(PlanCache(tmp_path / "file"), b"plan")


def _build(folder: Path) -> None:
    cache = PlanCache(folder)
    with cache.building(SPEC, HERE) as partial:
        if cache.get(SPEC, HERE) is None:
            with (folder / "built").open("a") as built:
                built.write(f"{os.getpid()}\n")
            _put(cache, b"plan", SPEC, partial)


def test_a_build_that_fails_on_a_full_disk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = PlanCache(tmp_path)

    def build(free_bytes: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free_bytes))
        with cache.building(SPEC, HERE):
            raise RuntimeError("basic_ios::clear: iostream error")  # as OpenVINO's compiler reports it

    with pytest.raises(PlanError, match=f"{tmp_path} cannot be written: No space left on device"):
        build(4096)
    with pytest.raises(RuntimeError):
        build(2**30)
    put(cache, b"plan")  # the next build succeeds


def test_one_of_several_processes_builds_a_plan(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_build, args=(tmp_path,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert len((tmp_path / "built").read_text().splitlines()) == 1

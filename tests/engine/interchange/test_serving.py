"""Two strict requests in one batch have the bytes of each alone, on the backends that take long to compile."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.engine.interchange.serving import COMPILE_TIMEOUT_S, assert_batches_leave_strict_images_alone


@pytest.mark.slow
@pytest.mark.timeout(2 * COMPILE_TIMEOUT_S)
def test_on_openvino(plan_cache_dir: Path, tmp_path: Path) -> None:
    assert_batches_leave_strict_images_alone("openvino", plan_cache_dir, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(2 * COMPILE_TIMEOUT_S)
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_on_inductor(plan_cache_dir: Path, tmp_path: Path) -> None:
    assert_batches_leave_strict_images_alone("inductor", plan_cache_dir, tmp_path)

"""An imported model is served as one that was trained here."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.interchange.serving import assert_batches_leave_strict_images_alone


@pytest.mark.slow
def test_two_strict_requests_in_one_batch_have_the_bytes_of_each_alone(plan_cache_dir: Path, tmp_path: Path) -> None:
    assert_batches_leave_strict_images_alone("eager", plan_cache_dir, tmp_path)

"""Images stay equal to the byte, and interfaces keep their names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.local_stack import free_port
from tests.system import recording

OTHER_PROCESSORS_LEVELS = 2  # float32 kernels differ in their last bits


@pytest.fixture(scope="module")
def worker_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, plan_cache_dir: Path, worker_port: int) -> Iterator[str]:
    settings = {"MSF_CACHE_DIR": str(plan_cache_dir), "MSF_WORKER_METRICS_PORT": str(worker_port)}
    with recording.service(tmp_path_factory.mktemp("service"), **settings) as url:
        yield url


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(recording.REQUESTS)))
def test_seed_gives_recorded_pixels(url: str, number: int) -> None:
    generated = recording.images(url, recording.REQUESTS[number])
    files = [recording.pixels_file(number, index) for index in range(len(generated))]
    assert not recording.pixels_file(number, len(generated)).exists()
    levels = 0 if recording.processor() == recording.load("processor") else OTHER_PROCESSORS_LEVELS
    for pixels, file in zip(generated, files, strict=True):
        expected = np.asarray(Image.open(file))
        assert pixels.shape == expected.shape
        assert np.abs(pixels.astype(int) - expected).max() <= levels


@pytest.mark.slow
def test_metrics_keep_their_names_types_and_labels(url: str, worker_port: int) -> None:
    for process, address in (("server", url), ("worker", f"http://127.0.0.1:{worker_port}")):
        assert recording.metrics(address) == recording.load("metrics")[process]


@pytest.mark.parametrize("name", ["openapi", "commands", "variables"])
def test_an_interface_keeps_its_names(name: str) -> None:
    assert getattr(recording, name)() == recording.load(name)


def test_every_record_belongs_to_a_request() -> None:
    numbers = {int(file.name.partition("-")[0]) for file in (Path(recording.RECORDS) / "images").iterdir()}
    assert numbers == set(range(len(recording.REQUESTS)))

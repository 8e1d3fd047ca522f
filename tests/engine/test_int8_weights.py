"""Weights stored as integers: what they lose, and what reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from click.testing import CliRunner

from msf_cli.main import main
from msf_engine.int8_weights import MIN_SIZE, SCALE, from_int8, to_int8
from msf_engine.repository import read_version
from msf_scheduler.stage import Stage
from tests.models import tiny_repository


def test_a_weight_differs_by_a_step_of_its_row_at_most() -> None:
    weight = torch.randn(64, 96) * torch.logspace(-6, 2, 64)[:, None]
    weight[7] = 0
    stored = to_int8({"w": weight})
    assert (stored["w"].dtype, stored["w" + SCALE].shape) == (torch.int8, (64, 1))
    steps = weight.abs().amax(1, keepdim=True) / 127
    restored = from_int8(stored)["w"]
    assert ((restored - weight).abs() <= steps).all()
    assert torch.equal(restored, restored.bfloat16().float())


def test_small_tensors_and_vectors_stay_as_they_are() -> None:
    weights = {"bias": torch.randn(MIN_SIZE), "small": torch.randn(8, 8)}
    assert to_int8(weights) == weights


def test_a_quantized_model_is_smaller_and_computes_almost_the_same(tmp_path: Path) -> None:
    tiny_repository(tmp_path)
    result = CliRunner().invoke(main, ["models", "quantize", "tiny:1", "--model-repo", str(tmp_path)])
    assert (result.exit_code, result.output) == (0, f"{tmp_path / 'tiny' / '2'}\n")
    first, second = (read_version(tmp_path, "tiny", number) for number in "12")
    sizes = [(version.folder / "base.safetensors").stat().st_size for version in (first, second)]
    assert sizes[1] < 0.7 * sizes[0]
    before, after = first.load(), second.load()
    for name, weight in before.state_dict().items():
        assert torch.dist(after.state_dict()[name], weight) <= 0.01 * weight.norm()
    for stage, arrays in second.read_time_embeddings().items():
        weights = after.denoiser(stage).time.state_dict(prefix="time.")
        assert arrays.keys() == weights.keys()
        assert all(np.array_equal(array, weights[name]) for name, array in arrays.items())
    assert first.network_digest(Stage.BASE) != second.network_digest(Stage.BASE)

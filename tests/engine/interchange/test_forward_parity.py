"""Denoisers of imported checkpoints compute what their own code computes, float32 against float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from msf_engine.denoiser import Denoiser
from msf_engine.denoiser_config import DenoiserConfig
from msf_engine.interchange.checkpoint import read_checkpoint
from msf_engine.interchange.diffusers_dit import read_transformer
from msf_engine.interchange.timm_dit import read_denoiser
from msf_engine.options import Layout
from tests.engine.interchange.peers import (
    CHANNELS,
    HEADS,
    NUM_CLASSES,
    SIZE,
    State,
    TimmDit,
    dit_transformer,
    timm_state,
    write_state,
)

TOLERANCE = 1e-5  # relative RMS
LAYOUTS: dict[str, tuple[Layout, dict[str, bool]]] = {
    "DiT": ("dit", {}),
    "SiT": ("sit", {}),
    "REPA": ("repa", {"learned_sigma": False, "projectors": True}),
    "REPA with norms of queries and keys": ("repa", {"learned_sigma": False, "qk_norm": True}),
    "LightningDiT": ("lightningdit", {"lightning": True, "qk_norm": True, "learned_sigma": False}),
}


def inputs() -> tuple[Tensor, Tensor]:
    """Random latents, which no swap of rows and columns leaves alone, and labels, of which the last is null."""
    generator = torch.Generator().manual_seed(4)
    return torch.randn(3, CHANNELS, SIZE, SIZE, generator=generator), torch.tensor([0, 3, NUM_CLASSES])


def check_parity(
    config: DenoiserConfig, state: State, theirs: Callable[[Tensor, Tensor, Tensor], Tensor], timesteps: list[float]
) -> None:
    denoiser = Denoiser(config).eval().requires_grad_(False)
    denoiser.load_state_dict(state)
    x, labels = inputs()
    for timestep in timesteps:
        t = torch.full((3,), timestep)
        expected = theirs(x, t, labels)
        output = denoiser(x, denoiser.time(t, torch.zeros(3)), labels)
        assert output.shape == expected.shape == x.shape
        assert (output - expected).norm() < TOLERANCE * expected.norm(), timestep


@pytest.mark.parametrize("changes", [{}, {"out_channels": CHANNELS}, {"patch_size": 1}], ids=str)
def test_a_dit_of_diffusers(tmp_path: Path, changes: dict[str, Any]) -> None:
    transformer = dit_transformer(**changes)
    transformer.save_pretrained(tmp_path, safe_serialization=True)
    config, state = read_transformer(tmp_path)

    def theirs(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        output: Tensor = transformer(x, timestep=t.long(), class_labels=labels).sample
        return output[:, :CHANNELS]

    check_parity(config, state, theirs, [0, 1, 500, 999])


@pytest.mark.parametrize("case", LAYOUTS)
def test_a_file_with_the_names_of_timm(tmp_path: Path, case: str) -> None:
    layout, options = LAYOUTS[case]
    state = timm_state(**options)
    file = write_state(tmp_path / "model.safetensors", state)
    config, ours = read_denoiser(read_checkpoint(file), layout, HEADS)
    theta = 10_000.0 if layout == "lightningdit" else None
    check_parity(config, ours, TimmDit(state, HEADS, rotary_theta=theta), [0, 1, 500, 999, 0.25])


def test_a_file_of_torch_with_averaged_weights_and_settings(tmp_path: Path) -> None:
    """Training checkpoints hold the settings of the run, too; the averaged weights are read."""
    import argparse

    state, other = timm_state(), {name: tensor + 1 for name, tensor in timm_state().items()}
    torch.save({"model": other, "ema": state, "args": argparse.Namespace(lr=1e-4), "opt": {}}, tmp_path / "last.pt")
    config, ours = read_denoiser(read_checkpoint(tmp_path / "last.pt"), "sit", HEADS)
    check_parity(config, ours, TimmDit(state, HEADS), [0.25])

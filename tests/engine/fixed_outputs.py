"""Outputs of a model with fixed weights, in eager float32, and their record.

`python -m tests.engine.fixed_outputs` records them, after a revision was raised.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from msf_engine.eager_network import eager_network, host_time_embedding
from msf_engine.model import DecodeModule, MsfModel
from msf_engine.noise import NoiseStream, gaussian_noise
from msf_engine.revisions import NETWORK_REVISION, NUMERICS_REVISION
from msf_engine.sampling import Latents, SampleNoise, noisy_condition, sample, stage_trajectory
from msf_scheduler.stage import Stage
from tests.models import tiny_config

RECORD = Path(__file__).parent / "fixed_outputs.json"
LABELS = np.array([0, 2])
GUIDANCE_SCALE = 2.5

Outputs = dict[str, NDArray[np.float32]]


def _values(shape: tuple[int, ...], seed: int) -> Tensor:
    """Evenly distributed numbers in [-1, 1) by integer arithmetic alone (a multiplicative hash of the position)."""
    positions = np.arange(np.prod(shape), dtype=np.uint64) + np.uint64(1 + 7919 * seed)
    hashed = (positions * np.uint64(2654435761)) % np.uint64(2**32)
    return torch.from_numpy((hashed.astype(np.float64) / 2**31 - 1).astype(np.float32).reshape(shape))


def fixed_model() -> MsfModel:
    """Return the tiny model with weights that no library's random numbers decide."""
    model = MsfModel(tiny_config()).eval().requires_grad_(False)
    for seed, (_, parameter) in enumerate(sorted(model.named_parameters())):
        fan_in = max(parameter[0].numel(), 1)
        parameter.copy_(_values(tuple(parameter.shape), seed) / fan_in**0.5)
    return model


@torch.no_grad()
def network_outputs() -> Outputs:
    """Return the outputs of what plans are compiled from: the velocity of both stages, and the decoder's levels."""
    model = fixed_model()
    decode = DecodeModule(model)
    outputs: Outputs = {}
    for stage in (Stage.BASE, Stage.RESIDUAL):
        config = model.config.stage(stage).denoiser
        x = _values((2, config.in_channels, config.size, config.size), 1)
        cond = _values((2, config.cond_channels, config.size, config.size), 3) if config.cond_channels else None
        velocity = model.denoiser(stage)(x, _values((2, config.width), 4), torch.from_numpy(LABELS), cond)
        outputs[f"{stage} velocity"] = velocity.numpy()
    base, residual = _values((2, 2, 2, 2), 5), _values((2, 6, 2, 2), 6)
    outputs["autoencoder"] = model.autoencoder.decode(decode.restore(base, residual)).numpy()
    outputs["decode"] = decode(base, residual).numpy()
    return outputs


def numeric_outputs() -> Outputs:
    """Return the outputs of what the host computes: noise, trajectories, and the latents at the end of both stages."""
    model = fixed_model()
    config = model.config
    outputs: Outputs = {"noise": gaussian_noise((2, 3, 3), seed=11, index=3, stream=NoiseStream.CONDITION)}
    noise = SampleNoise.of(config, [11, 11], [0, 1])
    cond: Latents | None = None
    assert noise.condition is not None
    for stage, start, num_steps in zip(config.denoising_stages, noise.stages, (5, 3), strict=True):
        denoiser = model.denoiser(stage)
        trajectory = stage_trajectory(config, stage, host_time_embedding(denoiser), num_steps, GUIDANCE_SCALE)
        latents = sample(eager_network(denoiser), trajectory, start, LABELS, denoiser.null_label, cond)
        cond = noisy_condition(config, latents, noise.condition) if stage is Stage.BASE else None
        times = config.process.schedule(num_steps).times
        outputs[f"{stage} times"] = np.append(times, 0).astype(np.float32)
        outputs[f"{stage} time embedding"] = trajectory.time_embedding
        outputs[f"{stage} updates"] = trajectory.updates
        outputs[f"{stage} latents"] = latents
    return outputs


def record() -> None:
    """Write the outputs of this code under its revisions."""
    parts = {"networks": (NETWORK_REVISION, network_outputs()), "numerics": (NUMERICS_REVISION, numeric_outputs())}
    content = {
        part: {"revision": revision, "outputs": {name: output.tolist() for name, output in outputs.items()}}
        for part, (revision, outputs) in parts.items()
    }
    RECORD.write_text(json.dumps(content) + "\n")


if __name__ == "__main__":
    record()

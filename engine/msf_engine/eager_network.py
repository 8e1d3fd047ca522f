"""A torch denoiser as the sampling loop sees it: arrays in and out, and its time embedding on the host."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from msf_engine.denoiser import Denoiser
from msf_engine.plan import Array
from msf_engine.sampling import Latents, Network
from msf_engine.time_embedding import HostTimeEmbedding


def eager_network(denoiser: Denoiser) -> Network:
    """Return the denoiser as a function of arrays; it computes where its parameters are."""
    device = next(denoiser.parameters()).device

    def velocity(inputs: Sequence[Array]) -> Latents:
        with torch.inference_mode():
            output: Latents = denoiser(*(torch.from_numpy(array).to(device) for array in inputs)).cpu().numpy()
        return output

    return velocity


def host_time_embedding(denoiser: Denoiser) -> HostTimeEmbedding:
    """Return a copy of the denoiser's time embedding."""
    weights = denoiser.time.state_dict(prefix="time.")
    arrays = {name: weight.float().cpu().numpy() for name, weight in weights.items()}
    return HostTimeEmbedding.of(arrays, denoiser.config.time)

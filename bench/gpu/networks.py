"""The networks of a cell, with random weights, on the device; and its backend's plans of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from bench.engine.random_models import SD_WIDTHS, model_config, random_model
from bench.engine.sizes import NUM_CLASSES, random_denoiser
from bench.gpu.cells import TINY, GpuNetwork
from msf_engine.backends import Backend
from msf_engine.config import ModelConfig
from msf_engine.denoiser import Denoiser
from msf_engine.device_plan import DevicePlan
from msf_engine.eager_network import host_time_embedding
from msf_engine.model import DecodeModule
from msf_engine.model_plans import ModelPlans
from msf_engine.plan import Input, PlanSpec, decode_inputs, denoiser_inputs
from msf_engine.plan_builder import MAX_DECODE_BUCKET
from msf_engine.plan_validation import EagerReference, ValidationInputs, make_validation_inputs
from msf_engine.time_embedding import HostTimeEmbedding
from msf_scheduler.stage import Stage


class BenchNetworks:
    """Networks by stage, inputs to validate their plans, and their outputs for these in eager float32.

    `config` is None for a DiT, which is a denoiser alone.
    """

    def __init__(self, network: GpuNetwork, device: torch.device) -> None:
        self.network = network
        self._device = device
        self.config: ModelConfig | None = None
        sizes = network.denoisers()
        if network.kind == "MSF":
            self.config = network_config(network)
            model = random_model(self.config, device)
            self.modules: dict[Stage, nn.Module] = {
                **{stage: model.denoiser(stage) for stage in self.config.denoising_stages},
                Stage.DECODE: DecodeModule(model).to(device).eval(),
            }
        else:
            with device:
                self.modules = {stage: random_denoiser(size) for stage, size in sizes.items()}
        self.embeddings = {stage: _host_embedding(self.modules[stage]) for stage in sizes}
        self._plan_inputs: dict[Stage, tuple[Input, ...]] = {
            stage: denoiser_inputs(size) for stage, size in sizes.items()
        }
        if self.config is not None:
            self._plan_inputs[Stage.DECODE] = decode_inputs(self.config)
        self.inputs: dict[Stage, ValidationInputs] = {}
        self.references: dict[Stage, EagerReference] = {}
        for stage, inputs in self._plan_inputs.items():
            self.inputs[stage] = make_validation_inputs(inputs, NUM_CLASSES, self.embeddings.get(stage))
            self.references[stage] = EagerReference.of(stage, self.modules[stage], self.inputs[stage])

    def spec(self, stage: Stage, buckets: tuple[int, ...]) -> PlanSpec:
        """Return the spec of a stage's plan."""
        return PlanSpec(str(self.network), "random weights", stage, buckets, self._plan_inputs[stage])

    def module(self, stage: Stage) -> nn.Module:
        """Return a network where its reference was computed; a plan may have moved it."""
        return self.modules[stage].to(self._device)


class BenchPlans:
    """One backend's plans of a cell's networks."""

    def __init__(self, networks: BenchNetworks, backend: Backend, buckets: tuple[int, ...]) -> None:
        self.networks = networks
        self.by_stage: dict[Stage, DevicePlan] = {}
        for stage in networks.modules:
            spec = networks.spec(stage, buckets_of(stage, buckets))
            with TemporaryDirectory() as folder:
                if backend.name == "tensorrt":
                    networks.modules[stage].cpu()  # it exports there, as in production
                backend.compile(spec, networks.modules[stage], Path(folder))
                plan = backend.load(spec, Path(folder), partial(networks.module, stage))
            assert isinstance(plan, DevicePlan)
            self.by_stage[stage] = plan

    def network(self, stage: Stage) -> Callable[..., Tensor]:
        """Return what a stage's plan calls with tensors on the device."""
        return self.by_stage[stage].network

    def at(self, bucket: int) -> ModelPlans | None:
        """Return a model that runs at one bucket; None for a DiT."""
        config = self.networks.config
        if config is None:
            return None
        buckets: Mapping[Stage, tuple[int, ...]] = {stage: buckets_of(stage, (bucket,)) for stage in config.all_stages}
        return ModelPlans(config, buckets, self.by_stage, {}, {}, "", self.networks.embeddings, "")


def buckets_of(stage: Stage, buckets: tuple[int, ...]) -> tuple[int, ...]:
    """Return a stage's buckets: an image takes one row in the decoder, and few of them at once."""
    if stage is not Stage.DECODE:
        return buckets
    return tuple(sorted({min(max(bucket // 2, 1), MAX_DECODE_BUCKET) for bucket in buckets}))


def network_config(network: GpuNetwork) -> ModelConfig:
    """Return the config of the whole model that an MSF network belongs to."""
    autoencoder = ((8,) * len(SD_WIDTHS), 4) if network.size == TINY else ()
    return model_config(network.denoisers(), network.image_size, *autoencoder)


def _host_embedding(module: nn.Module) -> HostTimeEmbedding:
    assert isinstance(module, Denoiser)
    return host_time_embedding(module)

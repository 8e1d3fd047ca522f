"""`make tensorrt-build`: really build TensorRT's plans, of the shipped model and of MSF-XL/2 at 256², GPU or not.

Each plan is built in a process of its own, so that its peak memory is its own. Without a GPU nothing is run.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

from torch import nn

from bench.engine.sizes import DOWNSAMPLING, LATENT_CHANNELS, msf_size, random_denoiser
from bench.local_stack import MODEL
from msf_engine.backends import Precision
from msf_engine.backends.tensorrt import TensorRtBackend
from msf_engine.config import (
    AutoencoderConfig,
    DenoiserConfig,
    ImageConfig,
    ModelConfig,
    SamplingConfig,
    StageConfig,
    Statistics,
)
from msf_engine.guided_step import StepModule
from msf_engine.model import DecodeModule, MsfModel
from msf_engine.plan import Input, PlanSpec, decode_inputs, step_inputs
from msf_engine.repository import read_version
from msf_scheduler.stage import Stage

MODELS = ("shipped", "XL")
PRECISIONS: tuple[Precision, ...] = ("fp16", "bf16")
BUCKETS = (1, 8, 32)
IMAGE_SIZE = 256
_SD_AUTOENCODER = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": LATENT_CHANNELS,
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "sample_size": IMAGE_SIZE,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS), help=f"of {', '.join(MODELS)}")
    parser.add_argument("--precisions", default=",".join(PRECISIONS))
    parser.add_argument("--buckets", default=",".join(map(str, BUCKETS)))
    parser.add_argument("--one", nargs=3, metavar=("MODEL", "STAGE", "PRECISION"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    buckets = tuple(int(bucket) for bucket in arguments.buckets.split(","))
    if arguments.one:
        model, stage, precision = arguments.one
        print(_build(model, Stage(stage), precision, buckets))
        return
    backend = TensorRtBackend(None, 1)
    print(f"{backend.fingerprint}; a profile for each of the buckets {arguments.buckets}\n")
    print("| model | plan | precision | fp32 weights, MB | engine, MB | seconds | peak memory, MB |")
    print("|---|---|---|---|---|---|---|")
    for model in arguments.models.split(","):
        for stage in Stage:
            for precision in arguments.precisions.split(","):
                own = (sys.executable, "-m", __spec__.name, "--buckets", arguments.buckets)
                row = subprocess.check_output((*own, "--one", model, stage, precision), text=True)
                print(row.strip().splitlines()[-1], flush=True)


def _build(model: str, stage: Stage, precision: str, buckets: tuple[int, ...]) -> str:
    assert precision in get_args(Precision)
    module, inputs = _shipped(stage) if model == "shipped" else _sized(model, stage)
    num_bytes = sum(each.numel() * each.element_size() for each in module.parameters())
    backend = TensorRtBackend(precision, 1)  # type: ignore[arg-type]
    spec = PlanSpec(model, "", stage, stage is not Stage.DECODE, buckets, inputs)
    started_at = time.monotonic()
    engine = backend.compile(spec, module)
    seconds = time.monotonic() - started_at
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    name = f"{stage}{' guided' if spec.guided else ''}"
    return (
        f"| {model} | {name} | {backend.precision_of(stage)} | {num_bytes / 1e6:.0f} "
        f"| {len(engine) / 1e6:.1f} | {seconds:.0f} | {peak_mb:.0f} |"
    )


def _shipped(stage: Stage) -> tuple[nn.Module, tuple[Input, ...]]:
    version = read_version(Path("model_repo"), MODEL)
    model = version.load()
    if stage is Stage.DECODE:
        return DecodeModule(model).eval(), decode_inputs(version.config)
    return StepModule(model.denoiser(stage), guided=True).eval(), step_inputs(version.config.stage(stage).denoiser)


def _sized(name: str, stage: Stage) -> tuple[nn.Module, tuple[Input, ...]]:
    if stage is Stage.DECODE:
        config = _decoder_config()
        return DecodeModule(MsfModel(config)).eval().requires_grad_(False), decode_inputs(config)
    size = msf_size(name, stage, IMAGE_SIZE)
    return StepModule(random_denoiser(size), guided=True).eval(), step_inputs(size)


def _decoder_config() -> ModelConfig:
    """Stable Diffusion's autoencoder, and denoisers that are only there to make the config whole."""
    half = IMAGE_SIZE // DOWNSAMPLING // 2

    def stage(channels: int, cond_channels: int) -> StageConfig:
        denoiser = DenoiserConfig(
            in_channels=channels, cond_channels=cond_channels, size=half, width=8, depth=1, num_heads=1, num_classes=1
        )
        statistics = Statistics(mean=(0.0,) * channels, std=(1.0,) * channels)
        return StageConfig(denoiser=denoiser, statistics=statistics, default_num_steps=1)

    return ModelConfig(
        image=ImageConfig(size=IMAGE_SIZE, channels=3),
        autoencoder=AutoencoderConfig(patch_size=1, kl=_SD_AUTOENCODER),
        base=stage(LATENT_CHANNELS, 0),
        residual=stage(3 * LATENT_CHANNELS, LATENT_CHANNELS),
        conditioning_noise=0.1,
        sampling=SamplingConfig(solver="euler", default_guidance_scale=1.0),
    )


if __name__ == "__main__":
    main()

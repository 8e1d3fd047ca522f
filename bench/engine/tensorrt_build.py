"""TensorRT engines of the shipped model and of MSF-XL/2 at 256²: sizes, build times and peak memory, without a GPU.

    python -m bench.engine.tensorrt_build

builds each plan in a separate process, so that its peak memory is its own, and prints a row for each; runs none.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from msf_engine.guided_step import StepModule
from tabulate import tabulate
from torch import nn

from bench.engine.sizes import DOWNSAMPLING, LATENT_CHANNELS, msf_size, random_denoiser
from bench.local_stack import MODEL
from msf_engine.backends import Precision
from msf_engine.backends.tensorrt import TensorRtBackend
from msf_engine.config import ModelConfig
from msf_engine.model import DecodeModule, MsfModel
from msf_engine.plan import Input, PlanSpec, decode_inputs, step_inputs
from msf_engine.repository import read_version
from msf_scheduler.stage import Stage

MODELS = ("shipped", "XL")
PRECISIONS: tuple[Precision, ...] = ("fp16", "bf16")
BUCKETS = (1, 8, 32)
IMAGE_SIZE = 256
SD_AUTOENCODER = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": LATENT_CHANNELS,
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "sample_size": IMAGE_SIZE,
}


def build(model: str, stage: Stage, precision: Precision, buckets: tuple[int, ...]) -> list[object]:
    """Build one plan and return its row of the table."""
    module, inputs = _shipped(stage) if model == "shipped" else _sized(model, stage)
    num_bytes = sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
    backend = TensorRtBackend(precision, 1)
    spec = PlanSpec(model, "", stage, stage is not Stage.DECODE, buckets, inputs)
    started_at = time.monotonic()
    engine = backend.compile(spec, module)
    build_s = time.monotonic() - started_at
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    name = f"{stage}{' guided' if spec.guided else ''}"
    return [model, name, backend.precision_of(stage), num_bytes / 1e6, len(engine) / 1e6, build_s, peak_mb]


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
    """Return a config with Stable Diffusion's autoencoder; its denoisers are placeholders."""

    def stage(channels: int, cond_channels: int) -> dict[str, object]:
        size = {"size": IMAGE_SIZE // DOWNSAMPLING // 2, "width": 8, "depth": 1, "num_heads": 1, "num_classes": 1}
        return {
            "denoiser": {"in_channels": channels, "cond_channels": cond_channels, **size},
            "statistics": {"mean": (0.0,) * channels, "std": (1.0,) * channels},
            "default_num_steps": 1,
        }

    return ModelConfig.model_validate(
        {
            "image": {"size": IMAGE_SIZE, "channels": 3},
            "autoencoder": {"patch_size": 1, "kl": SD_AUTOENCODER},
            "base": stage(LATENT_CHANNELS, 0),
            "residual": stage(3 * LATENT_CHANNELS, LATENT_CHANNELS),
            "conditioning_noise": 0.1,
            "sampling": {"solver": "euler", "default_guidance_scale": 1.0},
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help=f"models: {', '.join(MODELS)}")
    parser.add_argument("--precisions", default=",".join(PRECISIONS))
    parser.add_argument("--buckets", default=",".join(map(str, BUCKETS)))
    arguments = parser.parse_args()
    buckets = tuple(int(bucket) for bucket in arguments.buckets.split(","))
    print(f"{TensorRtBackend(None, 1).fingerprint}; a profile for each of the buckets {arguments.buckets}\n")
    rows = []
    for model in arguments.models.split(","):
        for stage in Stage:
            for precision in arguments.precisions.split(","):
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                    rows.append(pool.submit(build, model, stage, precision, buckets).result())
                print(*rows[-1], file=sys.stderr, flush=True)
    head = ["model", "plan", "precision", "fp32 weights, MB", "engine, MB", "seconds", "peak memory, MB"]
    print(tabulate(rows, head, tablefmt="github", floatfmt=("", "", "", ".0f", ".1f", ".0f", ".0f")))


if __name__ == "__main__":
    main()

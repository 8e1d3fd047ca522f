"""Import a DiT of any published size with random weights, and measure what serving it takes (`make import-xl`).

Each figure is printed as soon as it is known. The weights are random: neither time nor memory depends on them.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

from bench.engine.random_models import SD_WIDTHS
from msf_engine.backends import default_backends, get_backend
from msf_engine.denoiser import SIZES
from msf_engine.interchange.importing import ImportOptions, import_model
from msf_engine.plan_builder import PlanBuilder
from msf_engine.plan_cache import PlanCache
from msf_engine.plan_loader import load_plans
from msf_engine.repository import read_version
from msf_scheduler.stage import Stage

PLAN_CACHE_BYTES = 50 * 10**9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="XL")
    parser.add_argument("--backend", default=default_backends()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--import-only", action="store_true", help="build no plans")
    arguments = parser.parse_args()
    with TemporaryDirectory(prefix="import-xl-") as scratch:
        folder = Path(scratch)
        report(
            "parameters, with embeddings in each block",
            f"{write_pipeline(folder / 'pipeline', arguments.size) / 1e6:.0f} M",
        )
        started_at = time.monotonic()
        version_folder = import_model(folder / "pipeline", folder / "repo", "dit", ImportOptions())
        report("import", f"{time.monotonic() - started_at:.1f} s")
        size = sum(file.stat().st_size for file in version_folder.iterdir())
        report("version", f"{size / 1e9:.2f} GB")
        if arguments.import_only:
            return
        version, cache = read_version(folder / "repo", "dit"), PlanCache(folder / "plans", PLAN_CACHE_BYTES)
        backend = get_backend(arguments.backend, None, arguments.threads)
        started_at = time.monotonic()
        plans = load_plans(version, backend, cache, (2,))
        report(
            f"plans ({backend.name} {backend.precision}), built and validated", f"{time.monotonic() - started_at:.0f} s"
        )
        report("a step of one guided image", f"{plans.seconds[Stage.DENOISE, 2]:.2f} s")
        started_at = time.monotonic()
        load_plans(version, backend, cache, (2,))
        report("plans from the cache", f"{time.monotonic() - started_at:.0f} s")
        assert PlanBuilder(version, backend, cache, (2,)).is_cached()


def write_pipeline(folder: Path, size: str) -> int:
    """Write a `DiTPipeline` with the autoencoder of Stable Diffusion; return the number of the DiT's parameters."""
    width, depth, num_heads = SIZES[size]
    transformer = DiTTransformer2DModel(
        num_attention_heads=num_heads,
        attention_head_dim=width // num_heads,
        out_channels=8,
        num_layers=depth,
    ).requires_grad_(False)
    embeddings = transformer.transformer_blocks[0].norm1.emb.state_dict()
    for block in transformer.transformer_blocks:
        block.norm1.emb.load_state_dict(embeddings)
    vae = AutoencoderKL(
        block_out_channels=list(SD_WIDTHS),
        down_block_types=["DownEncoderBlock2D"] * len(SD_WIDTHS),
        up_block_types=["UpDecoderBlock2D"] * len(SD_WIDTHS),
        layers_per_block=2,
        latent_channels=4,
        sample_size=256,
    )
    pipeline = DiTPipeline(transformer, vae, DDIMScheduler(clip_sample=False))
    pipeline.save_pretrained(folder, safe_serialization=True, max_shard_size="100GB")
    return sum(parameter.numel() for parameter in transformer.parameters())


def report(name: str, value: str) -> None:
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{name}: {value} (peak memory {peak_gb:.1f} GB)", flush=True)


if __name__ == "__main__":
    main()

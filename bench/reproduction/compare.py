"""Compare MSF/2 with DiT/2 by PROTOCOL.md: quality at equal training, and images per second.

    python -m bench.reproduction.compare --scale short --data data/fashion-mnist --out runs/reproduction

All share one autoencoder, the data, the optimiser, and the number of tuned settings. The learning rate is constant
and weights are averaged, so that every run can be evaluated anywhere along it. Test images are used once all networks
are trained and all guidance scales chosen; `--held-out-only` stops before. Finished work is not repeated.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path

import torch

from bench.evaluation.comparison import Quality, ReferenceImages, balanced
from bench.evaluation.feature_networks import FeatureNetworks, train_feature_networks
from bench.evaluation.imagenet import load_imagenet_encoder
from bench.reproduction.architectures import (
    SCALES,
    Architecture,
    Scale,
    architectures,
    load_fashion_mnist,
    marks,
    sampling_of,
)
from bench.reproduction.latent_trainer import LatentTrainer
from bench.reproduction.report import BUDGETS, ArchitectureResult, mean_log_fid, write_report
from bench.reproduction.results_cache import ResultsCache
from bench.reproduction.sampling import Sampling, measure_speeds
from msf_engine.repository import ModelVersion, read_version
from msf_training.class_folders import ClassFolders
from msf_training.dataset import Split
from msf_training.latents import weights_digest

CURVE_GUIDANCE = 1.5  # of every learning curve


class Reproduction:
    """Training, tuning and measurement; every figure is kept at once."""

    def __init__(
        self,
        scale: Scale,
        data: ClassFolders,
        test: Split,
        version: ModelVersion,
        networks: FeatureNetworks,
        out: Path,
    ) -> None:
        self.scale = scale
        self.trainer = LatentTrainer(version.load(), data.train, scale.batch_size, out)
        self.references = {
            "tuning": ReferenceImages(networks, balanced(data.held_out, scale.num_tuning)),
            "test": ReferenceImages(networks, balanced(test, scale.num_evaluated)),
        }
        context = {
            "autoencoder": weights_digest(self.trainer.model.autoencoder),
            "networks": networks.digest(),
            "denoisers": scale.denoisers,
        }
        self.cache = ResultsCache(out / "figures.jsonl", context)

    def quality(self, architecture: Architecture, seed: int, mark: str, sampling: Sampling, split: str) -> Quality:
        """Measure a run at a mark on the `split` "tuning" or "test"."""
        num_images, reference = marks(self.scale, architecture)[mark], self.references[split]
        count = len(reference.real)

        def measure() -> Quality:
            denoisers = self.trainer.denoisers(architecture, seed, num_images)
            images = self.trainer.images(denoisers, sampling, count, seed)
            return reference.quality(reference.describe(str(sampling), images))

        phase = f"{split} {architecture.name}, seed {seed}, {num_images} images"
        return self.cache.get(phase, str(sampling), count, measure)

    def guidance(self, architecture: Architecture, mark: str) -> float:
        """Return the scale with the least geometric mean of the FIDs on held-out images, for the first seed."""

        def log_fid(scale: float) -> float:
            sampling = sampling_of(architecture, scale)
            return mean_log_fid([self.quality(architecture, self.scale.seeds[0], mark, sampling, "tuning")])

        return min(self.scale.guidance, key=log_fid)

    def train(self, architecture: Architecture) -> None:
        """Train every seed along its marks, and choose the guidance scales."""
        numbers = marks(self.scale, architecture)
        for seed in self.scale.seeds:
            for num_images in numbers.values():
                self.trainer.denoisers(architecture, seed, num_images)
        for mark in numbers:
            self.by_seed(architecture, mark, sampling_of(architecture, CURVE_GUIDANCE), "tuning")
        for mark in budgets_of(architecture, self.scale):
            self.guidance(architecture, mark)

    def by_seed(self, architecture: Architecture, mark: str, sampling: Sampling, split: str) -> list[Quality]:
        """Measure all seeds."""
        return [self.quality(architecture, seed, mark, sampling, split) for seed in self.scale.seeds]

    def result(self, architecture: Architecture) -> ArchitectureResult:
        """Judge a trained architecture by test images."""
        numbers = marks(self.scale, architecture)
        guidance = {mark: self.guidance(architecture, mark) for mark in budgets_of(architecture, self.scale)}
        samplings = {mark: sampling_of(architecture, scale) for mark, scale in guidance.items()}
        curve_sampling = sampling_of(architecture, CURVE_GUIDANCE)
        return ArchitectureResult(
            name=architecture.name,
            num_parameters=architecture.num_parameters,
            flops=architecture.flops,
            num_images=numbers,
            guidance=guidance,
            curve={mark: self.by_seed(architecture, mark, curve_sampling, "tuning") for mark in numbers},
            quality={mark: self.by_seed(architecture, mark, each, "test") for mark, each in samplings.items()},
        )


def budgets_of(architecture: Architecture, scale: Scale) -> list[str]:
    """Return the budgets that an architecture takes part in."""
    return [mark for mark in BUDGETS if mark in marks(scale, architecture)]


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description="Compare MSF with single-stage DiTs on Fashion-MNIST.")
    parser.add_argument("--scale", choices=SCALES, default="short")
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and test/")
    parser.add_argument("--model-repo", type=Path, default=Path("model_repo"), help="repository of the autoencoder")
    parser.add_argument("--out", type=Path, default=Path("runs/reproduction"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--held-out-only", action="store_true", help="train and choose; do not use the test images")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(arguments.threads)
    recipe, data, test = load_fashion_mnist(arguments.data, arguments.out)
    version = read_version(arguments.model_repo, "fashion-mnist")
    networks = replace(train_feature_networks(data, recipe, arguments.out), imagenet=load_imagenet_encoder())
    scale, out = SCALES[arguments.scale], arguments.out / arguments.scale
    reproduction = Reproduction(scale, data, test, version, networks, out)
    every = architectures(scale)
    for entry in every:
        reproduction.train(entry)
    if arguments.held_out_only:
        return
    results = [reproduction.result(entry) for entry in every]
    samplings = {
        entry.name: (entry.stages, sampling_of(entry, result.guidance["flops"]))
        for entry, result in zip(every, results, strict=True)
    }
    speeds = measure_speeds(samplings, reproduction.trainer.model)
    print(write_report(out, arguments.scale, scale, results, speeds))


if __name__ == "__main__":
    main()

"""Compare MSF with single-stage DiTs of the same code: quality at equal training, and images per second.

    python -m bench.reproduction.compare --scale short --data data/fashion-mnist --out runs/reproduction

All share one autoencoder, the data, the optimiser, and the number of tuned settings. The learning rate is constant
and weights are averaged, so that every run can be evaluated anywhere along it: after equally many images, after equally
many floating-point operations, and after the images that these operations allow the cheapest of equal parameters.
Finished work is not repeated when it is run again.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path

import torch

from bench.evaluation.comparison import Quality, ReferenceImages, balanced
from bench.evaluation.feature_networks import FeatureNetworks, train_feature_networks
from bench.reproduction.architectures import (
    BASELINE,
    SCALES,
    Architecture,
    Scale,
    architectures,
    load_fashion_mnist,
    marks,
    sampling_of,
)
from bench.reproduction.latent_trainer import LatentTrainer
from bench.reproduction.report import BUDGETS, ArchitectureResult, write_report
from bench.reproduction.results_cache import ResultsCache
from bench.reproduction.sampling import Sampling, measure_speeds
from msf_engine.repository import ModelVersion, read_version
from msf_training.class_folders import ClassFolders
from msf_training.dataset import Split
from msf_training.latents import weights_digest

STEPS_EACH = (20, 20)  # the other way to count: 20 in each stage
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

    def tune(self, architecture: Architecture, mark: str) -> float:
        """Return the guidance scale with the least FID on held-out images, for the first seed."""

        def total_fid(guidance: float) -> float:
            sampling = sampling_of(architecture, guidance)
            return sum(self.quality(architecture, self.scale.seeds[0], mark, sampling, "tuning").fid.values())

        return min(self.scale.guidance, key=total_fid)

    def result(self, architecture: Architecture) -> ArchitectureResult:
        """Train in the order of the marks, so that each run passes them on its way, and measure."""
        num_images = marks(self.scale, architecture)
        order = sorted(num_images, key=num_images.__getitem__)
        for seed in self.scale.seeds:
            for mark in order:
                self.trainer.denoisers(architecture, seed, num_images[mark])
        guidance = {mark: self.tune(architecture, mark) for mark in BUDGETS if mark in num_images}
        samplings = {mark: sampling_of(architecture, scale) for mark, scale in guidance.items()}

        def by_seed(mark: str, sampling: Sampling, split: str) -> list[Quality]:
            return [self.quality(architecture, seed, mark, sampling, split) for seed in self.scale.seeds]

        steps_each: list[Quality] = []
        if len(architecture.stages) == 2:
            steps_each = by_seed("longer", replace(samplings["longer"], steps=STEPS_EACH), "test")
        curve_sampling = sampling_of(architecture, CURVE_GUIDANCE)
        return ArchitectureResult(
            name=architecture.name,
            num_parameters=architecture.num_parameters,
            flops=architecture.flops,
            num_images=num_images,
            guidance=guidance,
            curve={mark: by_seed(mark, curve_sampling, "tuning") for mark in order},
            quality={mark: by_seed(mark, sampling, "test") for mark, sampling in samplings.items()},
            steps_each=steps_each,
        )


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description="Compare MSF with single-stage DiTs on Fashion-MNIST.")
    parser.add_argument("--scale", choices=SCALES, default="short")
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and test/")
    parser.add_argument("--model-repo", type=Path, default=Path("model_repo"), help="repository of the autoencoder")
    parser.add_argument("--out", type=Path, default=Path("runs/reproduction"))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(arguments.threads)
    recipe, data, test = load_fashion_mnist(arguments.data, arguments.out)
    version = read_version(arguments.model_repo, "fashion-mnist")
    networks = train_feature_networks(data, recipe, arguments.out)
    scale, out = SCALES[arguments.scale], arguments.out / arguments.scale
    reproduction = Reproduction(scale, data, test, version, networks, out)
    results = {entry: reproduction.result(entry) for entry in architectures(scale)}
    samplings = {
        entry.name: (entry.stages, sampling_of(entry, result.guidance["flops"])) for entry, result in results.items()
    }
    speeds = measure_speeds(samplings, reproduction.trainer.model)
    print(write_report(out, arguments.scale, scale, list(results.values()), speeds, BASELINE))


if __name__ == "__main__":
    main()

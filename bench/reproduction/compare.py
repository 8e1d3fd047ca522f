"""MSF against single-stage DiTs of the same code: quality at equal training, and images per second.

    python -m bench.reproduction.compare --scale short --data data --out runs/reproduction

All share one autoencoder, the data, the optimiser, and the number of tuning trials. The learning rate is constant and
weights are averaged, so that every run can be judged anywhere along it: after equally many images, after equally
many floating-point operations, and after the images that these operations allow the cheapest of equal parameters.
What is finished is not repeated when it is run again.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from bench.evaluation.comparison import Figures, Reference, balanced
from bench.evaluation.feature_networks import FeatureNetworks, train_networks
from bench.evaluation.results_cache import Journal
from bench.reproduction.report import Outcome, write_report
from bench.reproduction.sampler import Sampling, measure_speeds
from bench.reproduction.training import LATENT_CHANNELS, LATENT_SIZE, Contender, Trainer
from msf_engine.config import DenoiserConfig
from msf_engine.repository import ModelVersion, read_version
from msf_training.data import LABELS, FashionMnist, load_fashion_mnist
from msf_training.trainer import weights_digest

logger = logging.getLogger(__name__)

NUM_STEPS = 20  # in all: MSF shares them 16 + 4
STEPS = {1: (20,), 2: (16, 4)}
STEPS_EACH = (20, 20)  # the other way to count: so many in each stage
CURVE_GUIDANCE = 1.5  # of every learning curve
BUDGETS = ("images", "flops", "longer")
BASELINE = "DiT/1, equal parameters"


@dataclass(frozen=True)
class Scale:
    """How large and how long. `num_images` are seen by everyone for the first budget, by `BASELINE` for the second."""

    width: int
    depth: int  # blocks in all; MSF shares them
    num_heads: int
    batch_size: int
    num_images: int
    seeds: tuple[int, ...]
    num_tuning: int  # held-out images that a trial of a setting, and a point of a learning curve, is judged by
    num_evaluated: int  # test images that a budget's end is judged by
    guidance: tuple[float, ...] = (1.0, 1.25, 1.5, 2.0)  # the trials at the end of each budget: the same for all

    @property
    def denoisers(self) -> str:
        """What a figure of so many images seen, by a seed and a setting, depends on."""
        return f"width {self.width}, {self.depth} blocks, {self.num_heads} heads, batches of {self.batch_size}"


SCALES = {
    "short": Scale(64, 5, 2, 64, 51_200, (0,), 500, 1_000),
    "seeds": Scale(64, 5, 2, 64, 51_200, (0, 1, 2), 1_000, 10_000),
    "small": Scale(96, 8, 3, 128, 102_400, (0, 1, 2), 1_000, 2_000),
    "full": Scale(128, 10, 4, 128, 512_000, (0, 1, 2), 2_000, 10_000),
}


def denoiser_config(
    scale: Scale, in_channels: int, cond_channels: int, size: int, patch_size: int, depth: int
) -> DenoiserConfig:
    return DenoiserConfig(
        in_channels=in_channels,
        cond_channels=cond_channels,
        size=size,
        patch_size=patch_size,
        width=scale.width,
        depth=depth,
        num_heads=scale.num_heads,
        num_classes=len(LABELS),
    )


def contenders(scale: Scale) -> list[Contender]:
    """MSF first."""
    denoiser = partial(denoiser_config, scale)
    channels, size = LATENT_CHANNELS, LATENT_SIZE
    base_depth = round(scale.depth * 0.6)
    base = denoiser(channels, 0, size // 2, 1, base_depth)
    residual = denoiser(3 * channels, channels, size // 2, 1, scale.depth - base_depth)
    return [
        Contender("MSF", (base, residual)),
        Contender(BASELINE, (denoiser(channels, 0, size, 1, scale.depth),)),
        Contender("DiT/2, equal parameters", (denoiser(channels, 0, size, 2, scale.depth),)),
        Contender("DiT/1, equal depth", (denoiser(channels, 0, size, 1, base_depth),), is_of_equal_depth=True),
        Contender("DiT/2, equal depth", (denoiser(channels, 0, size, 2, base_depth),), is_of_equal_depth=True),
    ]


def marks(scale: Scale, contender: Contender) -> dict[str, int]:
    """Images seen, by budget: a quarter, half and all of the images; as many as the operations allow; and, of those of
    equal parameters, as many as the operations allow the cheapest.
    """
    seen, batch, entrants = scale.num_images, scale.batch_size, contenders(scale)
    operations = seen * next(each.flops for each in entrants if each.name == BASELINE)

    def affordable(contender: Contender) -> int:
        return round(operations / contender.flops / batch) * batch

    at = {"quarter": seen // 4, "half": seen // 2, "images": seen, "flops": affordable(contender)}
    if not contender.is_of_equal_depth:
        at["longer"] = max(affordable(each) for each in entrants if not each.is_of_equal_depth)
    return at


def sampling_of(contender: Contender, guidance: float) -> Sampling:
    steps = STEPS[len(contender.stages)]
    return Sampling(steps, (guidance,) * len(steps))


class Reproduction:
    """Trains, tunes and measures; every figure goes into the journal at once."""

    def __init__(
        self, scale: Scale, data: FashionMnist, version: ModelVersion, networks: FeatureNetworks, out: Path
    ) -> None:
        self.scale = scale
        self.data = data
        self.trainer = Trainer(version.load(), data.train, scale.batch_size, out)
        self.networks = networks
        context: dict[str, str | int] = {
            "autoencoder": weights_digest(self.trainer.model.autoencoder),
            "networks": self.networks.fingerprint(),
            "denoisers": scale.denoisers,
        }
        self.journal = Journal(out / "figures.jsonl", context)

    def figures(self, contender: Contender, seed: int, mark: str, sampling: Sampling, *, held_out: bool) -> Figures:
        num_images = marks(self.scale, contender)[mark]
        phase = f"{'tuning' if held_out else 'test'} {contender.name}, seed {seed}, {num_images} images"
        name = str(sampling)
        count = self.scale.num_tuning if held_out else self.scale.num_evaluated
        found = self.journal.find(phase, name, count)
        if found is None:
            made = self.trainer.images(self.trainer.denoisers(contender, seed, num_images), sampling, count, seed)
            real = self.data.held_out if held_out else self.data.test
            found = Reference(self.networks.describe, balanced(real, count)).compare(name, made.images, made.labels)
            self.journal.add(phase, found)
        logger.info("%s: %s, consistency %.3f, FID %s", phase, name, found.consistency, dict(found.fid))
        return found

    def tuned(self, contender: Contender, mark: str) -> float:
        """The guidance scale with the least FID on held-out images, of the first seed."""
        seed = self.scale.seeds[0]
        tried = {
            guidance: self.figures(contender, seed, mark, sampling_of(contender, guidance), held_out=True)
            for guidance in self.scale.guidance
        }
        return min(tried, key=lambda guidance: sum(tried[guidance].fid.values()))

    def outcome(self, contender: Contender) -> Outcome:
        """Trains in the order of the marks, so that each run passes them on its way."""
        seen = marks(self.scale, contender)
        order = sorted(seen, key=seen.__getitem__)
        for seed in self.scale.seeds:
            for mark in order:
                self.trainer.denoisers(contender, seed, seen[mark])
        guidance = {mark: self.tuned(contender, mark) for mark in BUDGETS if mark in seen}
        samplings = {mark: sampling_of(contender, scale) for mark, scale in guidance.items()}
        along = sampling_of(contender, CURVE_GUIDANCE)

        def by_seed(mark: str, sampling: Sampling, *, held_out: bool) -> list[Figures]:
            return [self.figures(contender, seed, mark, sampling, held_out=held_out) for seed in self.scale.seeds]

        each: list[Figures] = []
        if len(contender.stages) == 2:
            each = by_seed("longer", replace(samplings["longer"], steps=STEPS_EACH), held_out=False)
        return Outcome(
            name=contender.name,
            num_parameters=contender.num_parameters,
            flops=contender.flops,
            seen=seen,
            guidance=guidance,
            curve={mark: by_seed(mark, along, held_out=True) for mark in order},
            figures={mark: by_seed(mark, sampling, held_out=False) for mark, sampling in samplings.items()},
            steps_each=each,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="MSF against single-stage DiTs, on Fashion-MNIST.")
    parser.add_argument("--scale", choices=SCALES, default="short")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model-repo", type=Path, default=Path("model_repo"), help="whose autoencoder all share")
    parser.add_argument("--out", type=Path, default=Path("runs/reproduction"))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(arguments.threads)
    data = load_fashion_mnist(arguments.data)
    version = read_version(arguments.model_repo, "fashion-mnist")
    networks = train_networks(data.train, arguments.out / "networks")
    scale, out = SCALES[arguments.scale], arguments.out / arguments.scale
    reproduction = Reproduction(scale, data, version, networks, out)
    entrants = contenders(scale)
    outcomes = [reproduction.outcome(contender) for contender in entrants]
    speeds = measure_speeds(
        {
            each.name: (each.stages, sampling_of(each, outcome.guidance["flops"]))
            for each, outcome in zip(entrants, outcomes, strict=True)
        },
        reproduction.trainer.model,
        arguments.threads,
    )
    print(write_report(out, arguments.scale, scale, outcomes, speeds, BASELINE))


if __name__ == "__main__":
    main()

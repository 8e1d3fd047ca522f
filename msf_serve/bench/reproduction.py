"""MSF against single-stage DiTs of the same code: quality at equal training, and images per second.

    python -m msf_serve.bench.reproduction --scale short --data data --out runs/reproduction

All share one autoencoder, the data, the optimiser, and the number of tuning trials. The learning rate is constant and
weights are averaged, so that every run can be judged anywhere along it: after equally many images, and after equally
many floating-point operations. What is finished is not repeated when it is run again.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from msf_serve.bench.flops import step_flops
from msf_serve.bench.reproduction_report import Outcome, write_report
from msf_serve.bench.reproduction_sampler import Denoisers, measure_speeds
from msf_serve.engine.autoencoder import Autoencoder
from msf_serve.engine.config import DenoiserConfig, Statistics
from msf_serve.engine.denoiser import Denoiser
from msf_serve.engine.factorization import compose
from msf_serve.engine.model import Normalizer
from msf_serve.engine.repository import ModelVersion, read_version
from msf_serve.training.comparison import Figures, Reference, balanced
from msf_serve.training.data import LABELS, FashionMnist, Split, load_fashion_mnist, to_uint8
from msf_serve.training.denoiser import DenoiserObjective, Latents, base_loss, encode_latents, residual_loss
from msf_serve.training.features import FeatureNetworks, train_networks
from msf_serve.training.journal import Journal
from msf_serve.training.loop import Loop, LoopConfig

logger = logging.getLogger(__name__)

NUM_STEPS = 20  # in all: MSF shares them 16 + 4
STEPS = {1: (20,), 2: (16, 4)}
STEPS_EACH = (20, 20)  # the other way to count: so many in each stage
BUDGETS = ("images", "flops")
LATENT_CHANNELS, LATENT_SIZE = 4, 8
LEARNING_RATE = 6e-4
EMA = 0.999
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
    guidance: tuple[float, ...] = (1.0, 1.25, 1.5)  # the trials: the same for all


SCALES = {
    "short": Scale(64, 5, 2, 64, 51_200, (0,), 500, 1_000),
    "seeds": Scale(64, 5, 2, 64, 51_200, (0, 1, 2), 1_000, 10_000),
    "small": Scale(96, 8, 3, 128, 102_400, (0, 1, 2), 1_000, 2_000),
    "full": Scale(128, 10, 4, 128, 512_000, (0, 1, 2), 2_000, 10_000),
}


@dataclass(frozen=True)
class Contender:
    """A DiT, or MSF's two: `stages` are their denoisers."""

    name: str
    stages: tuple[DenoiserConfig, ...]

    @property
    def flops(self) -> float:
        """Of one forward pass of every stage for one image; training takes three times as many."""
        return sum(step_flops(stage, guided=False) for stage in self.stages)

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for stage in self.stages for parameter in Denoiser(stage).parameters())


def contenders(scale: Scale) -> list[Contender]:
    def denoiser(in_channels: int, cond: int, size: int, patch: int, depth: int) -> DenoiserConfig:
        return DenoiserConfig(
            in_channels=in_channels,
            cond_channels=cond,
            size=size,
            patch_size=patch,
            width=scale.width,
            depth=depth,
            num_heads=scale.num_heads,
            num_classes=len(LABELS),
        )

    channels, size = LATENT_CHANNELS, LATENT_SIZE
    base_depth = round(scale.depth * 0.6)
    base = denoiser(channels, 0, size // 2, 1, base_depth)
    residual = denoiser(3 * channels, channels, size // 2, 1, scale.depth - base_depth)
    return [
        Contender("MSF", (base, residual)),
        Contender(BASELINE, (denoiser(channels, 0, size, 1, scale.depth),)),
        Contender("DiT/1, equal depth", (denoiser(channels, 0, size, 1, base_depth),)),
        Contender("DiT/2, equal parameters", (denoiser(channels, 0, size, 2, scale.depth),)),
        Contender("DiT/2, equal depth", (denoiser(channels, 0, size, 2, base_depth),)),
    ]


class Reproduction:
    """Trains, tunes and measures; every figure goes into the journal at once."""

    def __init__(
        self, scale: Scale, data: FashionMnist, version: ModelVersion, networks: FeatureNetworks, out: Path
    ) -> None:
        self.scale = scale
        self.data = data
        self.out = out
        self.model = version.load()
        self.networks = networks
        context: dict[str, str | int] = {
            "autoencoder": version.digest,
            "networks": self.networks.fingerprint(),
            "scale": repr(self.scale),
        }
        self.journal = Journal(self.out / "figures.jsonl", context)
        self.baseline_flops = next(each.flops for each in contenders(self.scale) if each.name == BASELINE)

    @cached_property
    def latents(self) -> Latents:
        return encode_latents(self.model.autoencoder, self.data.train)

    @cached_property
    def whole(self) -> Latents:
        """The latents as they are before they are split, as `base`."""
        latents = self.latents
        base, residual = Normalizer(latents.base_statistics), Normalizer(latents.residual_statistics)
        z = compose(base.restore(latents.base), residual.restore(latents.residual))
        statistics = Statistics(mean=tuple(z.mean((0, 2, 3)).tolist()), std=tuple(z.std((0, 2, 3)).tolist()))
        return Latents(Normalizer(statistics).normalize(z), z[:, :0], latents.labels, statistics, statistics)

    def marks(self, contender: Contender) -> dict[str, int]:
        """Images seen, by budget: a quarter, half and all of the images; and as many as the operations allow."""
        seen, batch = self.scale.num_images, self.scale.batch_size
        return {
            "quarter": seen // 4,
            "half": seen // 2,
            "images": seen,
            "flops": round(seen * self.baseline_flops / contender.flops / batch) * batch,
        }

    def denoisers(self, contender: Contender, seed: int, num_images: int) -> Denoisers:
        """Trained on so many images, or read from a file."""
        folder = self.out / f"{contender.name.replace('/', '-').replace(', ', '-').replace(' ', '-')}-{seed}"
        return Denoisers([self._trained(stage, folder, seed, num_images) for stage in contender.stages])

    def _trained(self, config: DenoiserConfig, folder: Path, seed: int, num_images: int) -> Denoiser:
        name = "residual" if config.cond_channels else "base"
        kept = folder / f"{name}-{num_images:07d}.pt"
        torch.manual_seed(seed)
        denoiser = Denoiser(config)
        if kept.exists():
            denoiser.load_state_dict(torch.load(kept, weights_only=True))
            return denoiser.eval()
        is_msf = config.size < LATENT_SIZE
        latents, loss = (self.latents if is_msf else self.whole), (residual_loss if config.cond_channels else base_loss)
        objective = DenoiserObjective(batch_size=self.scale.batch_size)
        settings = LoopConfig(
            num_iterations=num_images // self.scale.batch_size,
            learning_rate=LEARNING_RATE,
            cooldown=0,
            ema_decays=(EMA,),
            seed=seed,
            log_every=200,
        )
        loop = Loop(denoiser, settings, folder / f"{name}.pt")
        loop.run(lambda generator: loss(denoiser, latents, objective, generator))
        if loop.iteration > settings.num_iterations:
            raise RuntimeError(f"{folder} was trained beyond {num_images} images; remove it to begin again")
        average = loop.averages[EMA]
        torch.save(average.state_dict(), kept)
        assert isinstance(average, Denoiser)
        return average

    def images(self, denoisers: Denoisers, steps: Sequence[int], guidance: float, count: int, seed: int) -> Split:
        """`count` images, the classes in turn."""
        labels = torch.arange(count) % len(LABELS)
        made = denoisers.sample(labels, steps, guidance, seed)
        if len(made) == 1:
            statistics = self.whole.base_statistics
            z = Normalizer(statistics).restore(made[0])
        else:
            base, residual = Normalizer(self.latents.base_statistics), Normalizer(self.latents.residual_statistics)
            z = compose(base.restore(made[0]), residual.restore(made[1]))
        return Split(_decode(self.model.autoencoder, z), labels)

    def figures(
        self, contender: Contender, seed: int, mark: str, steps: Sequence[int], guidance: float, *, held_out: bool
    ) -> Figures:
        num_images = self.marks(contender)[mark]
        phase = f"{'tuning' if held_out else 'test'} {contender.name}, seed {seed}, {num_images} images"
        name = f"{'+'.join(map(str, steps))}@{guidance:g}"
        count = self.scale.num_tuning if held_out else self.scale.num_evaluated
        found = self.journal.find(phase, name, count)
        if found is None:
            made = self.images(self.denoisers(contender, seed, num_images), steps, guidance, count, seed)
            real = self.data.held_out if held_out else self.data.test
            found = Reference(self.networks.describe, balanced(real, count)).compare(name, made.images, made.labels)
            self.journal.add(phase, found)
        logger.info("%s: %s, consistency %.3f, FID %s", phase, name, found.consistency, dict(found.fid))
        return found

    def tuned(self, contender: Contender) -> float:
        """The guidance scale with the least FID on held-out images, of the first seed."""
        steps = STEPS[len(contender.stages)]
        tried = {
            guidance: self.figures(contender, self.scale.seeds[0], "images", steps, guidance, held_out=True)
            for guidance in self.scale.guidance
        }
        return min(tried, key=lambda guidance: sum(tried[guidance].fid.values()))

    def outcome(self, contender: Contender) -> Outcome:
        """Trains in the order of the marks, so that each run passes them on its way."""
        marks = self.marks(contender)
        order = sorted(marks, key=marks.__getitem__)
        for seed in self.scale.seeds:
            for mark in order:
                self.denoisers(contender, seed, marks[mark])
        guidance = self.tuned(contender)

        def by_seed(mark: str, steps: Sequence[int], *, held_out: bool) -> list[Figures]:
            return [
                self.figures(contender, seed, mark, steps, guidance, held_out=held_out) for seed in self.scale.seeds
            ]

        steps = STEPS[len(contender.stages)]
        return Outcome(
            name=contender.name,
            num_parameters=contender.num_parameters,
            flops=contender.flops,
            seen=marks,
            guidance=guidance,
            curve={mark: by_seed(mark, steps, held_out=True) for mark in order},
            figures={mark: by_seed(mark, steps, held_out=False) for mark in BUDGETS},
            steps_each=by_seed("images", STEPS_EACH, held_out=False) if len(contender.stages) == 2 else [],
        )


def _decode(autoencoder: Autoencoder, z: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([to_uint8(autoencoder.decode(part)) for part in torch.split(z, 250)])


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
        {each.name: (each.stages, STEPS[len(each.stages)]) for each in entrants},
        {outcome.name: outcome.guidance for outcome in outcomes},
        reproduction.model,
        arguments.threads,
    )
    print(write_report(out, arguments.scale, scale, outcomes, speeds, BASELINE))


if __name__ == "__main__":
    main()

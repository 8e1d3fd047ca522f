"""Change each of MSF's design choices alone, at equal training operations; judge on held-out images.

    python -m bench.reproduction.ablation --data data/fashion-mnist --out runs/reproduction --candidates

Choices of training are retrained, those of sampling only sampled again. `--candidates` are those of PROTOCOL.md.
"""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import torch

from bench.evaluation.comparison import Quality, ReferenceImages, balanced
from bench.evaluation.feature_networks import FeatureNetworks, train_feature_networks
from bench.evaluation.imagenet import load_imagenet_encoder
from bench.evaluation.report import markdown_table
from bench.reproduction.architectures import (
    LATENT_CHANNELS,
    LATENT_SIZE,
    SCALES,
    Architecture,
    Scale,
    architectures,
    denoiser_config,
    load_fashion_mnist,
    marks,
)
from bench.reproduction.latent_trainer import LatentTrainer
from bench.reproduction.report import mean_fids, mean_log_fid
from bench.reproduction.results_cache import ResultsCache
from bench.reproduction.sampling import Sampling, Speed, measure_speeds
from msf_engine.denoiser import Denoiser
from msf_engine.denoiser_config import DenoiserConfig
from msf_engine.model import MsfModel
from msf_engine.repository import read_version
from msf_training.autoencoder_loss import residual_share
from msf_training.class_folders import ClassFolders
from msf_training.dataset import Split
from msf_training.denoiser_loss import DenoiserObjective
from msf_training.latents import weights_digest
from msf_training.recipe import Recipe
from msf_training.stages import TrainingRun

SAMPLING = Sampling((16, 4), (1.5, 1.5))
DIT_SAMPLING = Sampling((20,), (1.5,))
BUDGET = "half of FLOPs"  # every trained variant spends half of the operations that BASELINE spends


@dataclass(frozen=True)
class Variant:
    """One choice changed. The autoencoder is `regularised` to put little energy into the residual, or is not.

    `parts` are trained one after another: a stage each, or all stages that share blocks.
    """

    choice: str
    name: str
    parts: tuple[Architecture, ...]
    sampling: Sampling = SAMPLING
    max_conditioning_noise: float = 0.5
    regularised: bool = True

    @property
    def stages(self) -> tuple[DenoiserConfig, ...]:
        """Denoisers of all stages."""
        return tuple(stage for part in self.parts for stage in part.stages)

    @property
    def flops(self) -> float:
        """Operations of one forward pass of every stage for one image."""
        return sum(part.flops for part in self.parts)

    @property
    def cost(self) -> str:
        """Key that variants of equal speed share."""
        return f"{self.stages} {self.sampling.steps} {[scale != 1 for scale in self.sampling.guidance]}"


def _separate(name: str, *stages: DenoiserConfig) -> tuple[Architecture, ...]:
    return tuple(Architecture(name, (stage,)) for stage in stages)


def candidates(scale: Scale) -> list[Variant]:
    """Return MSF/2, the candidates of PROTOCOL.md that differ from it by one choice, and DiT/2 on both autoencoders."""
    ours, dit, *_ = architectures(scale)
    base, residual = ours.stages
    msf = _separate(ours.name, base, residual)
    channels, depths = LATENT_CHANNELS, (base.depth, residual.depth)
    shallow, deep = (
        stage.model_copy(update={"depth": depth}) for stage, depth in zip(ours.stages, reversed(depths), strict=True)
    )
    whole = denoiser_config(scale, channels, channels, LATENT_SIZE, 2, residual.depth)
    shared = tuple(stage.model_copy(update={"depth": scale.depth}) for stage in ours.stages)
    fine = (stage.model_copy(update={"patch_size": 1}) for stage in ours.stages)
    without_noise = Variant(
        "conditioning",
        "no noise on the base, in training and sampling",
        (msf[0], *_separate("MSF/2, no noise", residual)),
        replace(SAMPLING, conditioning_noise=0.0),
        max_conditioning_noise=0.0,
    )
    return [
        Variant("", "MSF/2", msf),
        Variant("residual's share", "autoencoder not regularised", msf, regularised=False),
        Variant("depth", f"{shallow.depth} + {deep.depth} blocks", _separate("MSF/2, deep residual", shallow, deep)),
        without_noise,
        Variant("weights", "shared blocks", (Architecture("MSF/2, shared", shared, shares_blocks=True),)),
        Variant("residual", "full resolution", _separate("MSF/2, full-resolution residual", base, whole)),
        Variant("patch", "1 in both stages", _separate("MSF/1", *fine)),
        Variant("rival", dit.name, (dit,), DIT_SAMPLING),
        Variant("rival", f"{dit.name}, autoencoder not regularised", (dit,), DIT_SAMPLING, regularised=False),
    ]


def variants(scale: Scale) -> list[Variant]:
    """Return the candidates, and what else is changed alone: the residual's condition, and how MSF/2 samples."""
    trained = candidates(scale)
    msf = trained[0].parts
    [residual] = msf[1].stages
    blind = residual.model_copy(update={"cond_channels": 0})
    samplings: list[tuple[str, str, Sampling]] = [
        *(
            ("conditioning", f"noise {level:g} when sampling", replace(SAMPLING, conditioning_noise=level))
            for level in (0.0, 0.05, 0.2, 0.4)
        ),
        *(("residual's steps", f"16 + {steps}", replace(SAMPLING, steps=(16, steps))) for steps in (1, 2, 8, 16)),
        *(
            ("guidance by stage", f"{scales[0]:g}, {scales[1]:g}", replace(SAMPLING, guidance=scales))
            for scales in ((1.0, 1.0), (1.5, 1.0), (1.0, 1.5), (2.0, 1.0), (2.0, 2.0))
        ),
        ("solver", "Euler", replace(SAMPLING, solver="euler")),
    ]
    return [
        *trained,
        Variant("conditioning", "residual without the base", (msf[0], *_separate("MSF/2, blind", blind))),
        *(Variant(choice, name, msf, sampling) for choice, name, sampling in samplings),
    ]


class Ablation:
    """Training and measurement of variants; every figure is kept at once."""

    def __init__(
        self,
        scale: Scale,
        data: ClassFolders,
        models: dict[bool, MsfModel],
        networks: FeatureNetworks,
        out: Path,
        num_images: int = 2_000,
    ) -> None:
        self.scale = scale
        self.reference = ReferenceImages(networks, balanced(data.held_out, num_images))
        self.unseen = balanced(data.held_out, num_images, skip=num_images)
        self.trainers = {
            regularised: LatentTrainer(
                model, data.train, scale.batch_size, out if regularised else out / "not-regularised"
            )
            for regularised, model in models.items()
        }
        context = {"networks": networks.digest(), "denoisers": scale.denoisers}
        self.cache = ResultsCache(out / "ablation.jsonl", context)

    def quality(self, variant: Variant, seed: int) -> Quality:
        """Measure images generated by both stages."""
        trainer, count = self.trainers[variant.regularised], len(self.unseen)

        def images() -> Split:
            return trainer.images(self._denoisers(variant, seed), variant.sampling, count, seed)

        return self._measure(variant, seed, variant.name, images)

    def quality_with_real_bases(self, variant: Variant, seed: int) -> Quality:
        """Measure images with the bases of other held-out images and generated residuals."""
        trainer = self.trainers[variant.regularised]

        def images() -> Split:
            return trainer.images_with_bases(self.unseen, self._denoisers(variant, seed), variant.sampling, seed)

        return self._measure(variant, seed, f"{variant.name}, with real bases", images)

    def reconstruction(self, variant: Variant) -> tuple[float, Quality]:
        """Return the residual's share of other held-out images' latents, and measure their reconstructions."""
        trainer = self.trainers[variant.regularised]
        latents = trainer.encode(self.unseen)
        images = self.reference.describe("reconstructed", Split(trainer.decode(latents), self.unseen.labels))
        return residual_share(latents).item(), self.reference.quality(images)

    def _denoisers(self, variant: Variant, seed: int) -> list[Denoiser]:
        """Train on as many images as the budget allows, and keep the averages at the comparison's marks on the way."""
        whole = Architecture(variant.name, variant.stages)
        numbers = marks(self.scale, whole)
        objective = DenoiserObjective(self.scale.batch_size, max_conditioning_noise=variant.max_conditioning_noise)
        trainer, denoisers = self.trainers[variant.regularised], []
        for part in variant.parts:
            for num_images in sorted(number for number in numbers.values() if number <= numbers[BUDGET]):
                trained = trainer.denoisers(part, seed, num_images, objective)
            denoisers += trained
        return denoisers

    def _measure(self, variant: Variant, seed: int, name: str, images: Callable[[], Split]) -> Quality:
        autoencoder = weights_digest(self.trainers[variant.regularised].model.autoencoder)
        return self.cache.get(
            f"{variant}, autoencoder {autoencoder}, seed {seed}, {self.scale.num_images} images",
            name,
            len(self.unseen),
            lambda: self.reference.quality(self.reference.describe(name, images())),
        )


def report(
    ablation: Ablation, rows: Sequence[Variant], seeds: Sequence[int], speeds: Mapping[str, Speed] | None = None
) -> str:
    """Return Markdown: a row for each variant, and for each autoencoder the FID after each further part of the model.

    `speeds` are by the variants' costs.
    """
    cells, autoencoder_cells = [], []
    reference = mean_log_fid([ablation.quality(rows[0], seed) for seed in seeds])
    for variant in rows:
        by_seed = [ablation.quality(variant, seed) for seed in seeds]
        change = math.exp(mean_log_fid(by_seed) - reference) - 1
        accuracy = f"{fmean(quality.top_1 for quality in by_seed):.3f}"
        speed = f"{speeds[variant.cost].best:.0f}" if speeds else ""
        mflop = f"{variant.flops / 1e6:.1f}"
        cells.append((variant.choice, variant.name, mflop, mean_fids(by_seed), f"{change:+.1%}", accuracy, speed))
        if variant.parts == rows[0].parts and variant.sampling == rows[0].sampling:
            share, reconstructed = ablation.reconstruction(variant)
            with_real = [ablation.quality_with_real_bases(variant, seed) for seed in seeds]
            fids = (mean_fids(qualities) for qualities in ([reconstructed], with_real, by_seed))
            autoencoder_cells.append((variant.name, f"{100 * share:.1f} %", *fids))
    networks = " / ".join(by_seed[0].fid)
    header = ("choice", "changed to", "MFLOP", f"FID ({networks})", "geometric mean", "accuracy", "images/s")
    parts = ("autoencoder", "residual's share", "FID, reconstructed", "residuals generated", "bases generated too")
    return markdown_table(header, cells) + "\n\n" + markdown_table(parts, autoencoder_cells)


def _train_unregularised(model: MsfModel, recipe: Recipe, data: ClassFolders, out: Path) -> MsfModel:
    """Return a model whose autoencoder may put any energy into the residual; its denoisers are not used."""
    autoencoder = recipe.autoencoder.model_copy(update={"residual_share_weight": 0.0})
    run = TrainingRun(recipe.model_copy(update={"autoencoder": autoencoder}), data, out, torch.device("cpu"))
    unregularised = MsfModel(model.config)
    unregularised.autoencoder.load_state_dict(run.train_autoencoder().state_dict())
    return unregularised.eval()


def main() -> None:
    """Run the ablation."""
    parser = argparse.ArgumentParser(description="Change each of MSF's choices alone, on Fashion-MNIST.")
    parser.add_argument("--scale", choices=SCALES, default="seeds", help="sizes, and the checkpoints to start from")
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and test/")
    parser.add_argument("--model-repo", type=Path, default=Path("model_repo"), help="repository of the autoencoder")
    parser.add_argument("--out", type=Path, default=Path("runs/reproduction"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--candidates", action="store_true", help="only what PROTOCOL.md chooses from")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(arguments.threads)
    recipe, data, _ = load_fashion_mnist(arguments.data, arguments.out)
    out, scale = arguments.out / arguments.scale, SCALES[arguments.scale]
    networks = replace(train_feature_networks(data, recipe, arguments.out), imagenet=load_imagenet_encoder())
    model = read_version(arguments.model_repo, "fashion-mnist").load()
    unregularised = _train_unregularised(model, recipe, data, arguments.out / "not-regularised")
    ablation = Ablation(scale, data, {True: model, False: unregularised}, networks, out)
    rows = (candidates if arguments.candidates else variants)(scale)
    seeds = range(arguments.seeds)
    for variant in rows:
        for seed in seeds:
            ablation.quality(variant, seed)
    speeds = measure_speeds({variant.cost: (variant.stages, variant.sampling) for variant in rows}, model)
    text = report(ablation, rows, seeds, speeds)
    (out / "ablation.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()

"""What MSF's choices are worth: each changed alone, trained and judged as in the comparison with DiTs.

    python -m bench.reproduction.ablation --data data --out runs/reproduction

The choices of training are retrained, those of sampling only sampled again. Figures are on held-out images.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import torch

from bench.evaluation.comparison import Figures, Reference, balanced
from bench.evaluation.feature_networks import FeatureNetworks, train_networks
from bench.evaluation.report import table
from bench.evaluation.results_cache import Journal
from bench.reproduction.compare import SCALES, Scale, contenders, denoiser_config, marks
from bench.reproduction.report import mean_of
from bench.reproduction.sampler import Sampling, Speed, measure_speeds
from bench.reproduction.training import LATENT_CHANNELS, Contender, Trainer
from msf_engine.config import DenoiserConfig
from msf_engine.denoiser import Denoiser
from msf_engine.model import MsfModel
from msf_engine.repository import read_version
from msf_training.autoencoder import residual_share
from msf_training.data import FashionMnist, Split, load_fashion_mnist
from msf_training.denoiser import DenoiserObjective
from msf_training.fashion import AUTOENCODER_OBJECTIVE, train_autoencoder
from msf_training.trainer import weights_digest

logger = logging.getLogger(__name__)

SAMPLING = Sampling((16, 4), (1.5, 1.5))


@dataclass(frozen=True)
class Variant:
    """One choice changed. `regularised`: whether the autoencoder was pressed to put little into the residual."""

    choice: str
    name: str
    base: Contender
    residual: Contender
    sampling: Sampling = SAMPLING
    max_conditioning_noise: float = 0.5
    regularised: bool = True

    @property
    def stages(self) -> tuple[DenoiserConfig, ...]:
        return self.base.stages + self.residual.stages

    @property
    def cost(self) -> str:
        """The same of variants that are equally fast."""
        return f"{self.stages} {self.sampling.steps} {[scale != 1 for scale in self.sampling.guidance]}"


def variants(scale: Scale) -> list[Variant]:
    """The first is what all others are changed from."""
    msf = contenders(scale)[0]
    base, residual = (Contender(msf.name, (stage,)) for stage in msf.stages)
    [seeing] = residual.stages
    blind = denoiser_config(scale, 3 * LATENT_CHANNELS, 0, seeing.size, 1, seeing.depth)
    large_base, large_residual = (
        Contender("MSF-2", (stage.model_copy(update={"patch_size": 2}),)) for stage in msf.stages
    )
    trained = [
        Variant("", "as compared", base, residual),
        Variant("residual's share", "autoencoder not pressed", base, residual, regularised=False),
        Variant("conditioning", "residual does not see the base", base, Contender("MSF blind", (blind,))),
        Variant(
            "conditioning",
            "no noise on the base, in training and sampling",
            base,
            Contender("MSF clean", (seeing,)),
            replace(SAMPLING, conditioning_noise=0.0),
            max_conditioning_noise=0.0,
        ),
        Variant("patch", "2 in both stages", large_base, large_residual),
    ]
    sampled = [
        *(("conditioning", f"noise {s:g} when sampling", {"conditioning_noise": s}) for s in (0.0, 0.05, 0.2, 0.4)),
        *(("residual's steps", f"16 + {steps}", {"steps": (16, steps)}) for steps in (1, 2, 8, 16)),
        *(
            ("guidance by stage", f"{base:g}, {residual:g}", {"guidance": (base, residual)})
            for base, residual in ((1.0, 1.0), (1.5, 1.0), (1.0, 1.5), (2.0, 1.0), (2.0, 2.0))
        ),
        ("solver", "Euler", {"solver": "euler"}),
    ]
    return trained + [
        Variant(choice, name, base, residual, replace(SAMPLING, **change))  # type: ignore[arg-type]
        for choice, name, change in sampled
    ]


class Ablation:
    """Trains and judges variants; every variant's figures go into the journal at once."""

    def __init__(
        self,
        scale: Scale,
        data: FashionMnist,
        models: dict[bool, MsfModel],
        networks: FeatureNetworks,
        out: Path,
        num_judged: int = 2_000,
    ) -> None:
        self.scale = scale
        self.data = data
        self.num_judged = num_judged
        self.num_images = marks(scale, contenders(scale)[0])["flops"]  # seen in training
        self.reference = Reference(networks.describe, balanced(data.held_out, num_judged))
        self.unseen = balanced(data.held_out, num_judged, skip=num_judged)
        self.trainers = {
            regularised: Trainer(model, data.train, scale.batch_size, out if regularised else out / "not-pressed")
            for regularised, model in models.items()
        }
        context: dict[str, str | int] = {"networks": networks.fingerprint(), "denoisers": scale.denoisers}
        context["autoencoders"] = " ".join(weights_digest(model.autoencoder) for model in models.values())
        self.journal = Journal(out / "ablation.jsonl", context)

    def figures(self, variant: Variant, seed: int) -> Figures:
        """All of the variant's making."""
        trainer = self.trainers[variant.regularised]
        return self._judged(
            variant,
            seed,
            variant.name,
            lambda: trainer.images(self._denoisers(variant, seed), variant.sampling, self.num_judged, seed),
        )

    def figures_on_real_bases(self, variant: Variant, seed: int) -> Figures:
        """Of other held-out images' bases, with residuals of the variant's making."""
        trainer = self.trainers[variant.regularised]
        return self._judged(
            variant,
            seed,
            f"{variant.name}, on real bases",
            lambda: trainer.images_on(self.unseen, self._denoisers(variant, seed), variant.sampling, seed),
        )

    def reconstruction(self, variant: Variant) -> tuple[float, Figures]:
        """Of other held-out images by the variant's autoencoder; before it, the residual's share of their latents."""
        trainer = self.trainers[variant.regularised]
        latents = trainer.encode(self.unseen)
        found = self.reference.compare("reconstructed", trainer.decode(latents), self.unseen.labels)
        return residual_share(latents).item(), found

    def _denoisers(self, variant: Variant, seed: int) -> list[Denoiser]:
        objective = DenoiserObjective(self.scale.batch_size, max_conditioning_noise=variant.max_conditioning_noise)
        return [
            denoiser
            for stage in (variant.base, variant.residual)
            for denoiser in self.trainers[variant.regularised].denoisers(stage, seed, self.num_images, objective)
        ]

    def _judged(self, variant: Variant, seed: int, name: str, make: Callable[[], Split]) -> Figures:
        phase = f"{variant}, seed {seed}"
        found = self.journal.find(phase, name, self.num_judged)
        if found is None:
            made = make()
            found = self.reference.compare(name, made.images, made.labels)
            self.journal.add(phase, found)
        logger.info("%s, seed %d: consistency %.3f, FID %s", name, seed, found.consistency, dict(found.fid))
        return found


def report(
    ablation: Ablation, tried: Sequence[Variant], seeds: Sequence[int], speeds: Mapping[str, Speed] | None = None
) -> str:
    """Markdown: a row for each variant; and for each autoencoder, what every further part of the making costs.

    `speeds` go by the variants' costs.
    """
    networks = ablation.reference.networks

    def fids(found: Sequence[Figures]) -> str:
        return " / ".join(mean_of([each.fid[network] for each in found]) for network in networks)

    rows: list[tuple[str, ...]] = []
    autoencoders: dict[bool, tuple[Variant, list[Figures]]] = {}
    for variant in tried:
        found = [ablation.figures(variant, seed) for seed in seeds]
        mflop = f"{(variant.base.flops + variant.residual.flops) / 1e6:.1f}"
        consistency = f"{fmean(each.consistency for each in found):.3f}"
        speed = f"{speeds[variant.cost].best:.0f}" if speeds else ""
        rows.append((variant.choice, variant.name, mflop, fids(found), consistency, speed))
        autoencoders.setdefault(variant.regularised, (variant, found))
    header = ("choice", "changed to", "MFLOP", f"FID ({' / '.join(networks)})", "consistency", "images/s")
    parts = []
    for variant, made in autoencoders.values():
        share, reconstructed = ablation.reconstruction(variant)
        on_real = [ablation.figures_on_real_bases(variant, seed) for seed in seeds]
        parts.append((variant.name, f"{100 * share:.1f} %", fids([reconstructed]), fids(on_real), fids(made)))
    of_parts = ("autoencoder", "residual's share", "FID, reconstructed", "residuals made", "bases made too")
    return table(header, rows) + "\n\n" + table(of_parts, parts)


def main() -> None:
    parser = argparse.ArgumentParser(description="MSF's choices, each changed alone, on Fashion-MNIST.")
    parser.add_argument("--scale", choices=SCALES, default="seeds", help="whose sizes and checkpoints are used")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model-repo", type=Path, default=Path("model_repo"), help="whose autoencoder is used")
    parser.add_argument("--out", type=Path, default=Path("runs/reproduction"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(arguments.threads)
    data = load_fashion_mnist(arguments.data)
    out, scale = arguments.out / arguments.scale, SCALES[arguments.scale]
    networks = train_networks(data.train, arguments.out / "networks")
    model = read_version(arguments.model_repo, "fashion-mnist").load()
    not_pressed = MsfModel(model.config)
    objective = replace(AUTOENCODER_OBJECTIVE, residual_share_weight=0.0)
    autoencoder = train_autoencoder(data, arguments.out / "not-pressed", objective)
    not_pressed.autoencoder.load_state_dict(autoencoder.state_dict())
    ablation = Ablation(scale, data, {True: model, False: not_pressed.eval()}, networks, out)
    tried = variants(scale)
    costs = {each.cost: (each.stages, each.sampling) for each in tried}
    speeds = measure_speeds(costs, model, arguments.threads)
    text = report(ablation, tried, range(arguments.seeds), speeds)
    (out / "ablation.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()

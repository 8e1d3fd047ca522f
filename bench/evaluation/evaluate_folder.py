"""How good a model is that `msf train` made of a folder of class folders, for its model card.

    python -m bench.evaluation.evaluate_folder --model-repo runs/model_repo --model emoji \
        --data data/emoji --recipe emoji --out runs/evaluation-emoji

trains two networks to judge by (once; they are kept in `out`), makes images by the plans that serve, and writes
`evaluation.md`, `evaluation.json`, `samples.png` and `neighbours.png`.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from bench.evaluation.engine_sampler import BUCKET, EngineSampler, load_sampler
from bench.evaluation.folder_comparison import PART_SIZE, ImageSet, TrainingSet
from bench.evaluation.folder_features import parts, train_folder_networks
from bench.evaluation.folder_report import FolderResult, folder_markdown, save_neighbours
from bench.evaluation.metrics import psnr
from bench.evaluation.report import save_grid
from msf_engine.backends import BACKENDS
from msf_engine.config import ModelConfig
from msf_engine.errors import EngineError
from msf_engine.repository import ModelVersion, read_version
from msf_training.autoencoder import residual_share
from msf_training.data import to_unit_range
from msf_training.folder import FolderData, load_folder
from msf_training.recipe import Recipe, read_recipe
from msf_training.sampler import Setting, generate, reconstruct

logger = logging.getLogger(__name__)

MIN_HELD_OUT = 2  # a covariance needs so many
GRID_COLUMNS = 8
MAX_GRID_ROWS = 10  # unless classes are named


@dataclass(frozen=True)
class Options:
    """`rounds`: images of a setting for each held-out image; `grid_classes`: the rows of the sample grid."""

    guidance: Sequence[float]
    rounds: int
    images_per_class: int
    grid_classes: Sequence[str]
    seed: int


@dataclass(frozen=True)
class FolderEvaluation:
    """Measures one model on one folder, and draws its pictures into `out`."""

    version: ModelVersion
    sampler: EngineSampler
    training: TrainingSet
    made_by: str
    out: Path

    def run(self, options: Options) -> FolderResult:
        training, data = self.training, self.training.data
        default, *others = settings(self.version.config, options.guidance)
        real = self._set("held out", data.held_out.images, data.held_out.labels)
        decoded = self._set("held out, reconstructed", reconstruct(self.sampler, real.images), real.labels)
        copies = self._copies(len(real.labels))
        asked_for = real.labels.repeat(options.rounds)
        served = self._generated(default, asked_for, options.seed)
        made = [served, *(self._generated(setting, asked_for, options.seed) for setting in others)]
        every_label = torch.arange(len(data.labels)).repeat_interleave(options.images_per_class)
        every_class = self._generated(default, every_label, options.seed)
        self._draw_samples(every_class, options)
        named = self._named(default, len(real.labels), options.seed)
        shown = named or served
        found = training.neighbours(shown, "pixels")
        save_neighbours(self.out / "neighbours.png", shown.images, found, data.train)
        return FolderResult(
            model=f"{self.version.name} version {self.version.version}",
            made_by=self.made_by,
            default=str(default),
            num_train=len(data.train),
            num_held_out=len(data.held_out),
            psnr_db=psnr(real.images, decoded.images),
            residual_share=self._residual_share(),
            fid_size=len(real.labels),
            images_per_class=options.images_per_class,
            quality=[training.quality(each, len(real.labels)) for each in (real, decoded, *made, *some(named))],
            nearness=[row for each in (real, copies, *made, *some(named)) for row in training.nearness(each)],
            classes=training.classes(real, every_class),
            grid_classes=options.grid_classes,
        )

    def _set(self, name: str, images: Tensor, labels: Tensor, images_per_s: float | None = None) -> ImageSet:
        seen = self.training.networks.describe(torch.split(images, PART_SIZE))
        logger.info("%s: %d images", name, len(images))
        return ImageSet(name, images, labels, seen, images_per_s)

    def _generated(self, setting: Setting, labels: Tensor, seed: int) -> ImageSet:
        samples = generate(self.sampler, labels, setting, seed=seed, on_images=lambda _: None)
        return self._set(str(setting), samples.images, labels, len(labels) / samples.wall_s)

    def _named(self, setting: Setting, count: int, seed: int) -> ImageSet | None:
        """Images asked for by pictures' own names, at even distances; `labels` are the classes of those pictures."""
        data = self.training.data
        names = self.version.labels[len(data.labels) :]
        if not names:
            return None
        asked_for = torch.tensor([self.version.labels.index(name) for name in spread(names, count)])
        first = [int((data.train_names == data.names.index(name)).nonzero()[0]) for name in spread(names, count)]
        samples = generate(self.sampler, asked_for, setting, seed=seed, on_images=lambda _: None)
        rate = len(asked_for) / samples.wall_s
        return self._set(f"{setting}, by own names", samples.images, data.train.labels[first], rate)

    def _copies(self, count: int) -> ImageSet:
        """Training images, evenly chosen, through the autoencoder."""
        train = self.training.data.train
        chosen = torch.linspace(0, len(train) - 1, count).long()
        images = train.all_images[chosen if train.rows is None else train.rows[chosen]]
        return self._set("trained on, reconstructed", reconstruct(self.sampler, images), train.labels[chosen])

    @torch.no_grad()
    def _residual_share(self) -> float:
        autoencoder = self.sampler.pixels.autoencoder
        held_out = parts(self.training.data.held_out, PART_SIZE)
        latents = [autoencoder.posterior(to_unit_range(images)).mean for images in held_out]
        return residual_share(torch.cat(latents)).item()

    def _draw_samples(self, every_class: ImageSet, options: Options) -> None:
        labels = self.training.data.labels
        by_class = every_class.images.reshape(len(labels), options.images_per_class, *every_class.images.shape[1:])
        rows = by_class[[labels.index(name) for name in options.grid_classes], :GRID_COLUMNS]
        save_grid(self.out / "samples.png", rows.flatten(0, 1), num_rows=len(rows), scale=1)


def settings(config: ModelConfig, guidance: Sequence[float]) -> list[Setting]:
    """The model's default number of steps with its default guidance scale, then with the others."""
    scales = dict.fromkeys((config.sampling.default_guidance_scale, *guidance))
    steps = config.base.default_num_steps, config.residual.default_num_steps
    guides_residual = config.residual.guidance.interval is not None
    return [Setting(*steps, scale, scale if guides_residual else 1.0) for scale in scales]


def check(version: ModelVersion, data: FolderData, recipe: Recipe, options: Options) -> None:
    """Raises ValueError that names what does not fit."""
    image = version.config.image
    if (image.size, image.channels) != (recipe.image_size, recipe.channels):
        raise ValueError(
            f"{version} makes images of {image.channels} x {image.size}²; "
            f"recipe {recipe.name} has {recipe.channels} x {recipe.image_size}²"
        )
    classes = version.labels[: len(data.labels)]  # pictures' own names may follow
    if classes != data.labels:
        other = sorted(set(classes) ^ set(data.labels))
        raise ValueError(f"{version} and the data differ in their classes: {', '.join(other)}")
    if len(data.held_out) < MIN_HELD_OUT:
        raise ValueError(
            f"recipe {recipe.name} holds out {len(data.held_out)} images of this data (held_out_percent "
            f"{recipe.held_out_percent}); needed are at least {MIN_HELD_OUT}"
        )
    most = version.config.sampling.max_guidance_scale
    for scale in options.guidance:
        if not 0 <= scale <= most:
            raise ValueError(f"--guidance {scale:g}: allowed are 0 to {most:g}")
    for name in options.grid_classes:
        if name not in data.labels:
            raise ValueError(f"--classes {name!r}: allowed are {', '.join(data.labels)}")


def some(images: ImageSet | None) -> list[ImageSet]:
    return [] if images is None else [images]


def spread(labels: tuple[str, ...], count: int) -> tuple[str, ...]:
    """So many of the labels, or all where there are fewer, at even distances."""
    count = min(count, len(labels))
    return tuple(labels[number * len(labels) // count] for number in range(count))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure the quality of a model that `msf train` made.")
    parser.add_argument("--model-repo", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True, help="the folder of class folders that it was trained on")
    parser.add_argument("--recipe", required=True, help="the one that it was trained by: what it held out counts")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backend", choices=BACKENDS, default="openvino")
    parser.add_argument(
        "--guidance", type=_scales, default=(1.5, 2.0, 3.0), help="scales beside the default, by commas"
    )
    parser.add_argument("--rounds", type=_positive, default=2, help="images of a setting for each held-out image")
    parser.add_argument("--images-per-class", type=_positive, default=20, help="for the figures by class")
    parser.add_argument("--classes", type=_names, help="rows of the sample grid, by commas")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        recipe = read_recipe(args.recipe)
        version = read_version(args.model_repo, args.model)
        data = load_folder(
            args.data,
            args.out / "images.npy",
            size=recipe.image_size,
            channels=recipe.channels,
            background=recipe.background,
            held_out_percent=recipe.held_out_percent,
        )
        grid_classes = args.classes or spread(data.labels, MAX_GRID_ROWS)
        options = Options(args.guidance, args.rounds, args.images_per_class, grid_classes, args.seed)
        check(version, data, recipe, options)
        sampler = load_sampler(version, args.backend, args.out / "plans")
    except (ValueError, FileNotFoundError, EngineError) as error:
        parser.error(str(error))
    networks = train_folder_networks(data, recipe, args.out)
    made_by = f"{args.backend} (threads: {torch.get_num_threads()}, batch: {BUCKET})"
    evaluation = FolderEvaluation(version, sampler, TrainingSet(networks, data, recipe), made_by, args.out)
    result = evaluation.run(options)
    (args.out / "evaluation.json").write_text(json.dumps(asdict(result), indent=2) + "\n")
    (args.out / "evaluation.md").write_text(folder_markdown(result))
    print(folder_markdown(result))


def _scales(text: str) -> tuple[float, ...]:
    return tuple(float(scale) for scale in text.split(","))


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}: allowed are 1 and more")
    return number


if __name__ == "__main__":
    main()

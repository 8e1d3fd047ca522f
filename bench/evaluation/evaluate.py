"""Measure the quality of a model on class folders, for its model card.

    python -m bench.evaluation.evaluate --model-repo runs/model_repo --model emoji \
        --data data/emoji --recipe emoji --out runs/evaluation-emoji

trains the feature networks (once; they are kept in `out`), generates images by the plans that serve, compares them with
the images of `--test`, or with the training images, and writes `evaluation.md`, `evaluation.json`, `samples.png` and
`neighbours.png`.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from bench.evaluation.comparison import ReferenceImages
from bench.evaluation.evaluation import Evaluation, Options, spread
from bench.evaluation.feature_networks import train_feature_networks
from bench.evaluation.imagenet import load_imagenet_encoder
from bench.evaluation.nearness import TrainingImages
from bench.evaluation.report import markdown
from bench.evaluation.served_model import BUCKET, SamplingSetting, load_served_model
from msf_engine.backends import BACKENDS
from msf_engine.errors import EngineError
from msf_engine.repository import ModelVersion, read_version
from msf_training.class_folders import ClassFolders, load_class_folders
from msf_training.recipe import Recipe, read_recipe

logger = logging.getLogger(__name__)

MIN_HELD_OUT = 4  # precision and recall look at the third neighbour
MAX_GRID_ROWS = 10  # unless classes are named


def check(version: ModelVersion, recipe: Recipe, data: ClassFolders, test: ClassFolders, options: Options) -> None:
    """Raise ValueError that names what does not fit."""
    image = version.config.image
    if (image.size, image.channels) != (recipe.image_size, recipe.channels):
        raise ValueError(
            f"{version} makes images of {image.channels} x {image.size}²; "
            f"recipe {recipe.name} has {recipe.channels} x {recipe.image_size}²"
        )
    unknown = set(version.labels) - set(data.labels) - set(data.image_names)
    differences = sorted(unknown | set(data.labels) - set(version.labels) | set(data.labels) ^ set(test.labels))
    if differences:
        raise ValueError(f"{version} and the data differ in their labels: {', '.join(differences)}")
    if len(data.held_out) < MIN_HELD_OUT:
        raise ValueError(
            f"recipe {recipe.name} holds out {len(data.held_out)} images of this data (held_out_percent "
            f"{recipe.held_out_percent}); at least {MIN_HELD_OUT} are needed"
        )
    max_scale = version.config.sampling.max_guidance_scale
    for setting in options.settings:
        if setting.guidance_scale > max_scale:
            raise ValueError(f"--settings {setting}: the guidance scale is at most {max_scale:g}")
        if len(setting.num_steps) != len(version.config.stages):
            raise ValueError(f"--settings {setting}: the model has {len(version.config.stages)} denoising stages")
    for name in options.grid_classes:
        if name not in data.labels:
            raise ValueError(f"--classes {name!r}: allowed are {', '.join(data.labels)}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run an evaluation."""
    parser = argparse.ArgumentParser(description="Measure the quality of a model on class folders.")
    parser.add_argument("--model-repo", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True, help="class folders that the model was trained on")
    parser.add_argument("--recipe", required=True, help="recipe of the training; it decides what is held out")
    parser.add_argument("--test", type=Path, help="class folders to compare with  [default: the training images]")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backend", choices=BACKENDS, default="openvino")
    parser.add_argument(
        "--settings",
        type=_settings,
        default=(),
        help="in addition to the default: 16+4@1,16+4@2 (steps@guidance scale)",
    )
    parser.add_argument("--num-images", type=_positive, default=10_000, help="held-out images at most")
    parser.add_argument("--rounds", type=_positive, default=1, help="images of a setting for each held-out image")
    parser.add_argument("--images-per-class", type=_positive, default=20, help="for the accuracies by class")
    parser.add_argument("--classes", type=_names, help="rows of the sample grid, separated by commas")
    parser.add_argument("--no-imagenet", action="store_true", help="leave out the ImageNet network's features")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        recipe = read_recipe(args.recipe)
        version = read_version(args.model_repo, args.model)
        out: Path = args.out
        data = load_class_folders(args.data, out / "images.npy", recipe.image_format, recipe.held_out_percent)
        test = load_class_folders(args.test, out / "test.npy", recipe.image_format) if args.test else data
        grid_classes = args.classes or spread(data.labels, min(MAX_GRID_ROWS, len(data.labels)))
        options = Options(args.settings, args.num_images, args.rounds, args.images_per_class, grid_classes, args.seed)
        check(version, recipe, data, test, options)
        imagenet = None if args.no_imagenet else load_imagenet_encoder()
        model = load_served_model(version, args.backend, out / "plans")
    except (ValueError, OSError, ImportError, EngineError) as error:
        parser.error(str(error))
    networks = train_feature_networks(data, recipe, out)
    evaluation = Evaluation(
        version,
        model,
        data,
        ReferenceImages(replace(networks, imagenet=imagenet), test.train),
        f"the {len(test.train):,} {'test' if args.test else 'training'} images",
        TrainingImages(networks, data, recipe),
        f"{args.backend} (threads: {torch.get_num_threads()}, batch: {BUCKET})",
        out,
    )
    result = evaluation.run(options)
    (out / "evaluation.json").write_text(json.dumps(asdict(result), indent=2) + "\n")
    (out / "evaluation.md").write_text(markdown(result))
    print(markdown(result), end="")


def _settings(text: str) -> tuple[SamplingSetting, ...]:
    try:
        return tuple(SamplingSetting.parse(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} must be at least 1")
    return number


if __name__ == "__main__":
    main()

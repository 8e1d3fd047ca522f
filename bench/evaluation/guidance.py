"""Effect of each kind of guidance on a model's images.

    python -m bench.evaluation.guidance --model-repo model_repo --model fashion-mnist --recipe fashion-mnist \
        --data data/fashion-mnist/train --out runs/evaluation

generates images of held-out labels by the plans that serve, and compares them with all held-out images in the features
of a classifier and of a self-supervised network. Guidance by a negative class is to change what is seen, so of it only
the classes count: the share of images that the classifier takes for their class, and for the negative one.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from bench.evaluation.comparison import ReferenceImages, balanced
from bench.evaluation.feature_networks import train_feature_networks
from bench.evaluation.report import joined, markdown_table
from bench.evaluation.served_model import ServedModel, load_served_model
from msf_engine.backends import BACKENDS
from msf_engine.config import GuidanceConfig, ModelConfig
from msf_engine.generate import denoise_stages
from msf_engine.repository import read_version
from msf_engine.sampling import SampleNoise
from msf_training.class_folders import load_class_folders
from msf_training.dataset import Split
from msf_training.recipe import read_recipe

PLAIN = "as served"
NONE = "none"
NEGATIVE = "negative class"
ALWAYS = (0.0, 1.0)


def variants(config: ModelConfig) -> dict[str, tuple[GuidanceConfig, ...]]:
    """Return the guidance of every stage by the name of a variant; all but one change the first stage alone."""
    first, *others = (stage.guidance for stage in config.stages)
    channels = config.stages[0].denoiser.in_channels
    changed = {
        PLAIN: first,
        NONE: GuidanceConfig(interval=None),
        "times 0 to 0.7": GuidanceConfig(interval=(0.0, 0.7)),
        "times 0.3 to 1": GuidanceConfig(interval=(0.3, 1.0)),
        "times 0.2 to 0.8": GuidanceConfig(interval=(0.2, 0.8)),
        f"first {channels - 1} of {channels} channels": GuidanceConfig(channels=channels - 1),
        NEGATIVE: first,
    }
    every = {name: (guidance, *others) for name, guidance in changed.items()}
    if others:
        every["all stages"] = (GuidanceConfig(),) * len(config.stages)
    return every


def generate(
    model: ServedModel, guidance: tuple[GuidanceConfig, ...], labels: Tensor, negative: Tensor | None, seed: int
) -> Tensor:
    """Return images of `labels` (N,) at the model's default setting."""
    stages = tuple(
        stage.model_copy(update={"guidance": each}) for stage, each in zip(model.config.stages, guidance, strict=True)
    )
    plans = replace(model.plans, config=model.config.model_copy(update={"stages": stages}))
    latents = denoise_stages(
        plans,
        SampleNoise.of(plans.config, [seed] * len(labels), range(len(labels))),
        labels.numpy(),
        model.default_setting.num_steps,
        model.default_setting.guidance_scale,
        negative_labels=None if negative is None else negative.numpy(),
    )
    return model.decode(*map(torch.from_numpy, latents))


def most_confused(labels: Tensor, seen: Tensor, num_classes: int) -> Tensor:
    """Return for each class (num_classes,) the other class that its images are most often taken for."""
    counts = torch.zeros(num_classes, num_classes).index_put_((labels, seen), torch.ones(()), accumulate=True)
    return counts.fill_diagonal_(-1).argmax(dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-repo", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True, help="class folders that the model was trained on")
    parser.add_argument("--recipe", required=True, help="recipe of the training; it decides what is held out")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backend", choices=BACKENDS, default="openvino")
    parser.add_argument("--num-images", type=int, default=2_000)
    parser.add_argument("--variants", help="names separated by commas  [default: all]")
    arguments = parser.parse_args()
    recipe, version = read_recipe(arguments.recipe), read_version(arguments.model_repo, arguments.model)
    data = load_class_folders(
        arguments.data, arguments.out / "images.npy", recipe.image_format, recipe.held_out_percent
    )
    networks = train_feature_networks(data, recipe, arguments.out)
    model = load_served_model(version, arguments.backend, arguments.out / "plans")
    reference = ReferenceImages(networks, data.held_out)
    labels = balanced(data.held_out, min(arguments.num_images, len(data.held_out))).labels
    to_model = torch.tensor([version.labels.index(name) for name in data.labels])
    guidance = variants(version.config)
    rows = []
    for name in arguments.variants.split(",") if arguments.variants else guidance:
        negative = None
        if name == NEGATIVE:
            plain = networks.describe(Split(generate(model, guidance[PLAIN], to_model[labels], None, 0), labels))
            confused = most_confused(labels, plain.ranking[:, 0], len(data.labels))[labels]
            negative = to_model[confused]
        images = reference.describe(name, Split(generate(model, guidance[name], to_model[labels], negative, 0), labels))
        quality = reference.quality(images)
        figures = (joined(quality.fid), joined(quality.precision), joined(quality.recall))
        if negative is not None:
            taken = [(each.ranking[:, 0] == confused).double().mean().item() for each in (plain, images.description)]
            figures = (f"taken for the negative class: {taken[1]:.3f}, without it {taken[0]:.3f}", "", "")
        rows.append((name, f"{quality.top_1:.3f}", *figures))
        print(*rows[-1], sep=" | ", flush=True)
    print(markdown_table(("guidance", "top-1", "FID", "precision", "recall"), rows))


if __name__ == "__main__":
    main()

"""A tiny data set, its recipe, and feature networks that are trained in a moment."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from bench.evaluation.feature_networks import NetworkTraining
from msf_training.trainer import TrainerConfig
from tests.models import LABELS, tiny_recipe

IMAGES_PER_CLASS = 16
RECIPE = tiny_recipe(
    """
channels = 1
held_out_percent = 25
balance = 0.5
flip = true
never_flipped = ["star"]
""",
    num_iterations=1,
)


def write_shapes(folder: Path) -> Path:
    """Write class folders: a class is a shade of grey with a bright bar that moves from image to image."""
    for label, name in enumerate(LABELS):
        (folder / name).mkdir(parents=True)
        for number in range(IMAGES_PER_CLASS):
            image = Image.new("L", (16, 16), 220 - 80 * label)
            image.paste(255, (number, 0, number + 1, 16))
            image.save(folder / name / f"{number}.png")
    return folder


def quick_training(num_iterations: int) -> NetworkTraining:
    config = TrainerConfig(num_iterations=num_iterations, learning_rate=5e-3, warmup_iterations=1, cooldown=1)
    return NetworkTraining(width=8, batch_size=16, classifier=config, self_supervised=config)

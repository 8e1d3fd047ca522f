"""The feature networks learn, are kept, and see images the same way every time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.evaluation.augmentation import erase, recolour, zoom
from bench.evaluation.feature_networks import (
    Batches,
    NetworkTraining,
    reduce,
    self_supervised_loss,
    train_feature_networks,
)
from bench.evaluation.imagenet import load_imagenet_encoder
from bench.evaluation.networks import SelfSupervised
from msf_training.class_folders import ClassFolders, load_class_folders
from msf_training.dataset import to_unit_range
from msf_training.recipe import Recipe, read_recipe
from msf_training.trainer import Trainer, TrainerConfig
from tests.bench.shapes import IMAGES_PER_CLASS, RECIPE, quick_training, write_shapes
from tests.models import LABELS


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_shapes(tmp_path / "data")


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return read_recipe(str(tmp_path / "recipe.toml"))


@pytest.fixture
def data(folder: Path, recipe: Recipe, tmp_path: Path) -> ClassFolders:
    return load_class_folders(folder, tmp_path / "images.npy", recipe.image_format, recipe.held_out_percent)


def test_the_classifier_learns_the_classes_of_the_folders(data: ClassFolders, recipe: Recipe, tmp_path: Path) -> None:
    networks = train_feature_networks(data, recipe, tmp_path, quick_training(30))
    description = networks.describe(data.held_out)
    assert (description.ranking[:, 0] == data.held_out.labels).double().mean() > 0.8
    assert description.ranking.sort(dim=1).values.tolist() == [[0, 1, 2]] * len(data.held_out)
    widths = {name: features.shape[1] for name, features in description.features.items()}
    assert widths == {"classifier": 32, "self-supervised": 32}


@pytest.mark.slow
def test_the_self_supervised_loss_falls_without_collapse(data: ClassFolders, recipe: Recipe, tmp_path: Path) -> None:
    torch.manual_seed(0)
    batches, network = Batches.of(data, recipe), SelfSupervised(8, patch_size=1, projection=32)

    def loss(iteration: int) -> float:
        return self_supervised_loss(network, batches, 64, torch.Generator().manual_seed(iteration))["loss"].item()

    before = loss(1)
    config = TrainerConfig(num_iterations=30, learning_rate=5e-3, warmup_iterations=1, cooldown=1)
    Trainer(network, config, tmp_path / "network.pt").run(
        lambda generator: self_supervised_loss(network, batches, 64, generator)
    )
    assert loss(1) < before
    with torch.no_grad():
        features = network.eval().encoder(batches.images.float() / 127.5 - 1)
    assert features.std(0).mean() > 0.01


def test_networks_are_kept_for_the_same_data_and_recipe_only(
    data: ClassFolders, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def digest(recipe: Recipe, training: NetworkTraining) -> str:
        return train_feature_networks(data, recipe, tmp_path, training).digest()

    first = digest(recipe, quick_training(1))
    assert digest(recipe.model_copy(update={"flip": False}), quick_training(1)) != first
    assert digest(recipe, quick_training(2)) != first

    def fail(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(Trainer, "_step", fail)
    assert digest(recipe, quick_training(1)) == first


def test_the_digest_changes_with_a_single_weight(data: ClassFolders, recipe: Recipe, tmp_path: Path) -> None:
    networks = train_feature_networks(data, recipe, tmp_path, quick_training(1))
    before = networks.digest()
    with torch.no_grad():
        networks.classifier.head.bias[1] += 1e-6
    assert networks.digest() != before


def test_features_do_not_depend_on_the_batch(data: ClassFolders, recipe: Recipe, tmp_path: Path) -> None:
    networks = train_feature_networks(data, recipe, tmp_path, quick_training(1))
    whole = networks.describe(data.held_out).features
    for index in range(2):
        alone = networks.describe(data.held_out.take(torch.tensor([index]))).features
        for name, features in alone.items():
            torch.testing.assert_close(features[0], whole[name][index])


def test_networks_see_small_images_with_the_background_at_zero() -> None:
    images = torch.full((2, 3, 128, 128), 255, dtype=torch.uint8)
    images[:, 0, :2, :2] = 55
    small = reduce(images, "white", side=64)
    assert small.shape == (2, 3, 64, 64)
    assert small[:, 0, 0, 0].tolist() == [200, 200]
    assert small.sum() == 2 * 200
    assert torch.equal(reduce(images, "black", side=64), 255 - small)
    assert reduce(images[..., :32, :32], "white").shape == (2, 3, 32, 32)


def test_batches_keep_to_the_balance_and_to_the_classes_that_may_be_flipped(
    folder: Path, recipe: Recipe, tmp_path: Path
) -> None:
    for number in range(1, IMAGES_PER_CLASS):
        (folder / "star" / f"{number}.png").unlink()
    data = load_class_folders(folder, tmp_path / "few.npy", recipe.image_format)
    batches = Batches.of(data, recipe.model_copy(update={"balance": 0.0}))
    _, labels, may_flip = batches.draw(3000, torch.Generator().manual_seed(0))
    shares = (torch.bincount(labels) / 3000).tolist()
    assert shares == pytest.approx([1 / 3] * 3, abs=0.05)
    assert torch.equal(may_flip, labels != LABELS.index("star"))
    assert not any(recipe.model_copy(update={"flip": False}).may_flip(data.labels))


def test_imagenet_features_are_those_of_the_same_pixels_in_colour(
    data: ClassFolders, recipe: Recipe, tmp_path: Path
) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    encoder = load_imagenet_encoder()
    networks = train_feature_networks(data, recipe, tmp_path, quick_training(1))
    grey = data.held_out.take(torch.arange(2))
    features = replace(networks, imagenet=encoder).describe(grey).features["ImageNet"]
    assert features.shape == (2, 1280)
    assert not torch.allclose(features[0], features[1])
    torch.testing.assert_close(encoder(to_unit_range(grey.images.expand(-1, 3, -1, -1))), features)


def test_zoom_keeps_the_background_and_at_scale_one_the_image(generator: torch.Generator) -> None:
    images = torch.rand(4, 1, 32, 32, generator=generator) * 2 - 1
    torch.testing.assert_close(zoom(images, (1.0, 1.0), generator), images)
    smaller = zoom(torch.ones(8, 1, 32, 32), (1.5, 1.5), generator)
    assert smaller.amin((1, 2, 3)).tolist() == [-1.0] * 8
    assert (smaller > 0).float().mean().item() == pytest.approx(1 / 1.5**2, abs=0.05)


def test_recolouring_leaves_the_background_dark_and_stays_in_range(generator: torch.Generator) -> None:
    images = torch.tensor([-1.0, 0.0, 1.0]).view(1, 1, 1, 3).expand(100, 2, 1, 3)
    background, middle, white = recolour(images, (0.5, 1.5), (1.0, 1.0), generator)[:, 0, 0].unbind(1)
    assert background.eq(-1).all()
    assert white.max() == 1
    assert middle.min() == pytest.approx(-0.5, abs=0.05)
    assert middle.max() == pytest.approx(0.5, abs=0.05)


def test_a_tint_scales_channels_independently_above_the_background(generator: torch.Generator) -> None:
    tinted = recolour(torch.tensor([-1.0, 0.0]).expand(50, 3, 1, 2), (1.0, 1.0), (0.5, 1.5), generator)
    assert tinted[..., 0].eq(-1).all()
    assert tinted[..., 1].min() >= -0.5
    assert tinted[..., 1].max() <= 0.5
    assert (tinted[:, 0, 0, 1] != tinted[:, 1, 0, 1]).all()


def test_erase_darkens_one_rectangle_of_bounded_size(generator: torch.Generator) -> None:
    erased = erase(torch.ones(200, 1, 32, 32), 0.5, generator) == -1
    heights, widths = erased.any(3).sum((1, 2)), erased.any(2).sum((1, 2))
    assert (erased.sum((1, 2, 3)) == heights * widths).all()
    assert heights.max() <= 17
    assert heights.max() >= 14
    assert widths.max() <= 17

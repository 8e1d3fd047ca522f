"""The evaluation of a folder's model: the networks learn from it, and a tiny model is measured from end to end."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

from bench.evaluation import evaluate_folder
from bench.evaluation.folder_features import (
    Batches,
    Fits,
    FolderNetworks,
    coarse_pixels,
    coarse_views,
    flippable,
    parts,
    reduced,
    train_folder_networks,
)
from msf_training.folder import FolderData, load_folder
from msf_training.recipe import Recipe, read_recipe
from msf_training.trainer import Loop, LoopConfig
from tests.models import LABELS, tiny_recipe, tiny_repository

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
IMAGES = 16  # of a class


def fits(num_iterations: int) -> Fits:
    loop = LoopConfig(num_iterations, learning_rate=5e-3, warmup_iterations=1, ema_decays=())
    return Fits(width=8, patch_size=8, batch_size=16, classifier=loop, self_supervised=loop)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A class is a shade of grey, and a bright bar that moves from image to image."""
    for label, name in enumerate(LABELS):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(IMAGES):
            image = Image.new("L", (16, 16), 220 - 80 * label)
            image.paste(255, (number, 0, number + 1, 16))
            image.save(tmp_path / "data" / name / f"{number}.png")
    return tmp_path / "data"


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return read_recipe(str(tmp_path / "recipe.toml"))


@pytest.fixture
def data(folder: Path, tmp_path: Path) -> FolderData:
    return load_folder(folder, tmp_path / "images.npy", size=16, channels=1, background="white", held_out_percent=25)


def arguments(tmp_path: Path, *others: str) -> list[str]:
    where = {"--data": "data", "--recipe": "recipe.toml", "--out": "out", "--model-repo": "repo"}
    paths = [each for option, name in where.items() for each in (option, str(tmp_path / name))]
    return [*paths, "--model", "tiny", "--backend", "eager", *others]


def test_a_model_is_measured_from_end_to_end(
    folder: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_repository(tmp_path / "repo")
    quick = partial(train_folder_networks, fits=fits(2))
    monkeypatch.setattr(evaluate_folder, "train_folder_networks", quick)
    options = ("--guidance", "1,1.5", "--images-per-class", "3", "--rounds", "1", "--classes", "star,circle")
    evaluate_folder.main(arguments(tmp_path, *options))
    out = tmp_path / "out"
    shown = capsys.readouterr().out
    assert shown == (out / "evaluation.md").read_text() + "\n"
    assert "a row for each of: star, circle" in shown
    result = json.loads((out / "evaluation.json").read_text())
    assert result["num_train"] + result["num_held_out"] == IMAGES * len(LABELS)
    assert [row["name"] for row in result["quality"]] == ["held out", "held out, reconstructed", "4+2@1.5", "4+2@1"]
    assert {row["num_images"] for row in result["quality"]} == {result["num_held_out"]}
    assert all(row["top_1"] <= row["top_3"] == 1 for row in result["quality"])
    spaces = [(row["name"], row["space"]) for row in result["nearness"]]
    names = ("held out", "trained on, reconstructed", "4+2@1.5", "4+2@1")
    assert spaces == [(name, space) for name in names for space in ("self-supervised", "pixels")]
    assert [each["name"] for each in result["classes"]] == list(LABELS)
    assert 0 <= result["residual_share"] <= 1
    with Image.open(out / "samples.png") as grid:
        assert grid.size == (3 * 16, 2 * 16)
    with Image.open(out / "neighbours.png") as picture:
        assert picture.width == 2 * 5 * 16

    evaluate_folder.main(arguments(tmp_path, *options))
    again = json.loads((out / "evaluation.json").read_text())
    for row in (*result["quality"], *again["quality"]):
        row.pop("images_per_s")
    assert again == result


def test_what_does_not_fit_is_named(
    folder: Path, recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_repository(tmp_path / "repo")

    def problem(*options: str) -> str:
        with pytest.raises(SystemExit):
            evaluate_folder.main(arguments(tmp_path, *options))
        return capsys.readouterr().err

    assert "--classes 'moon': allowed are circle, square, star" in problem("--classes", "moon,star")
    assert "--guidance 11: allowed are 0 to 10" in problem("--guidance", "11")
    assert "0: allowed are 1 and more" in problem("--rounds", "0")
    assert "model 'none' is not in" in problem("--model", "none")
    file = tmp_path / "recipe.toml"
    file.write_text(RECIPE.replace("held_out_percent = 25", "held_out_percent = 0"))
    assert "holds out 0 images of this data (held_out_percent 0); needed are at least 2" in problem()
    file.write_text(RECIPE.replace("channels = 1", "channels = 3"))
    assert "tiny:1 makes images of 1 x 16²; recipe shapes has 3 x 16²" in problem()
    file.write_text(RECIPE)
    (folder / "star").rename(folder / "sun")
    assert "tiny:1 and the data differ in their classes: star, sun" in problem()


def test_the_classifier_learns_what_the_folders_tell(data: FolderData, recipe: Recipe, tmp_path: Path) -> None:
    networks = train_folder_networks(data, recipe, tmp_path, fits(30))
    seen = networks.describe(parts(data.held_out))
    assert (seen.ranking[:, 0] == data.held_out.labels).double().mean() > 0.8
    assert seen.ranking.sort(dim=1).values.tolist() == [[0, 1, 2]] * len(data.held_out)
    widths = {space: features.shape[1] for space, features in seen.features.items()}
    assert widths == {"classifier": 32, "self-supervised": 32, "pixels": 16 * 16}


def test_networks_are_kept_for_the_same_data_and_recipe_only(
    data: FolderData, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bias(recipe: Recipe) -> list[float]:
        networks: FolderNetworks = train_folder_networks(data, recipe, tmp_path, fits(1))
        return networks.classifier.head.bias.tolist()

    first = bias(recipe)
    assert bias(recipe.model_copy(update={"flip": False})) != first

    def no_training(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(Loop, "_step", no_training)
    assert bias(recipe) == first


def test_what_networks_see_is_small_with_the_background_at_zero() -> None:
    images = torch.full((2, 3, 128, 128), 255, dtype=torch.uint8)
    images[:, 0, :2, :2] = 55
    small = reduced(images, "white", side=64)
    assert small.shape == (2, 3, 64, 64)
    assert small[:, 0, 0, 0].tolist() == [200, 200]
    assert small.sum() == 2 * 200
    assert torch.equal(reduced(images, "black", side=64), 255 - small)


def test_a_moved_image_is_one_of_its_views() -> None:
    image = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    image[..., 8:20, 8:20] = 40
    views = coarse_views(image, "white", 4)
    assert views.shape == (9, 1, 3 * 16 * 16)
    assert torch.equal(views[4], coarse_pixels(image, "white"))
    moved = coarse_pixels(image.roll((4, -4), (2, 3)), "white")
    assert [torch.equal(view, moved) for view in views].count(True) == 1
    assert len(coarse_views(image, "white", 0)) == 1


def test_batches_keep_to_the_balance_and_to_what_may_be_flipped(folder: Path, recipe: Recipe, tmp_path: Path) -> None:
    for number in range(1, IMAGES):
        (folder / "star" / f"{number}.png").unlink()
    data = load_folder(folder, tmp_path / "few.npy", size=16, channels=1, background="white", held_out_percent=0)
    alike = Batches.of(data, recipe.model_copy(update={"balance": 0.0}))
    _, labels, may_flip = alike.draw(3000, torch.Generator().manual_seed(0))
    shares = (torch.bincount(labels) / 3000).tolist()
    assert shares == pytest.approx([1 / 3] * 3, abs=0.05)
    assert torch.equal(may_flip, labels != LABELS.index("star"))
    assert not flippable(data.labels, recipe.model_copy(update={"flip": False})).any()

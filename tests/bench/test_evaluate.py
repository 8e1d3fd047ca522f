"""A tiny model is evaluated from end to end, and image sets are compared as they should be."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from bench.evaluation import evaluate
from bench.evaluation.comparison import ImageSet, ReferenceImages, balanced
from bench.evaluation.evaluation import spread
from bench.evaluation.feature_networks import Description, FeatureNetworks, train_feature_networks
from bench.evaluation.networks import Classifier, SelfSupervised
from bench.evaluation.report import markdown_table
from msf_training.dataset import Split
from msf_training.sample_grids import save_grid
from tests.bench.shapes import IMAGES_PER_CLASS, RECIPE, quick_training, write_shapes
from tests.models import LABELS, tiny_repository


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder with `data`, `recipe.toml` and `repo`, where feature networks are trained in a moment."""
    write_shapes(tmp_path / "data")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    tiny_repository(tmp_path / "repo")
    quick = partial(train_feature_networks, training=quick_training(2))
    monkeypatch.setattr(evaluate, "train_feature_networks", quick)
    return tmp_path


def arguments(folder: Path, *others: str) -> list[str]:
    names = {"--data": "data", "--recipe": "recipe.toml", "--out": "out", "--model-repo": "repo"}
    paths = [part for option, name in names.items() for part in (option, str(folder / name))]
    return [*paths, "--model", "tiny", "--backend", "eager", *others]


def test_a_model_is_measured_from_end_to_end(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--settings", "4+2@1,4+2@1.5", "--images-per-class", "3", "--classes", "star,circle", "--no-imagenet")
    evaluate.main(arguments(folder, *options))
    out = folder / "out"
    text = capsys.readouterr().out
    assert text == (out / "evaluation.md").read_text()
    assert "a row for each of: star, circle" in text
    assert "training images, of" in text
    result = json.loads((out / "evaluation.json").read_text())
    assert result["num_train"] + result["num_held_out"] == IMAGES_PER_CLASS * len(LABELS)
    names = [row["name"] for row in result["quality"]]
    generated = ["4+2@1.5", "4+2@1"]  # the default first
    assert names == [
        *("held out", "held out, reconstructed", *generated),
        *("4+2@1.5, residual zeroed", "4+2@1.5, real base"),
    ]
    assert {row["num_images"] for row in result["quality"]} == {result["num_held_out"]}
    assert all(row["top_1"] <= row["top_3"] == 1 for row in result["quality"])
    assert {tuple(row["fid"]) for row in result["quality"]} == {("classifier", "self-supervised")}
    spaces = [(row["name"], row["space"]) for row in result["nearness"]]
    sets = ("held out", "trained on, reconstructed", *generated)
    assert spaces == [(name, space) for name in sets for space in ("self-supervised", "pixels")]
    assert [row["name"] for row in result["classes"]] == list(LABELS)
    assert 0 <= result["residual_share"] <= 1
    with Image.open(out / "samples.png") as grid:
        assert grid.size == (3 * 16, 2 * 16)
    with Image.open(out / "neighbours.png") as picture:
        assert picture.width == 2 * 5 * 16

    evaluate.main(arguments(folder, *options))
    again = json.loads((out / "evaluation.json").read_text())
    for row in (*result["quality"], *again["quality"]):
        row.pop("images_per_s")
    assert again == result


@pytest.mark.slow
def test_a_test_folder_is_the_reference_also_in_imagenet_features(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    write_shapes(folder / "test")
    options = ("--test", str(folder / "test"), "--num-images", "4", "--rounds", "2", "--images-per-class", "1")
    evaluate.main(arguments(folder, *options))
    assert f"against the {IMAGES_PER_CLASS * len(LABELS)} test images, of 4" in " ".join(
        capsys.readouterr().out.split()
    )
    result = json.loads((folder / "out/evaluation.json").read_text())
    assert [row["num_images"] for row in result["quality"]] == [4, 4, 8, 4, 4]
    assert {tuple(row["fid"]) for row in result["quality"]} == {("classifier", "self-supervised", "ImageNet")}


def test_image_names_are_requested_as_often_as_there_are_held_out_images(folder: Path) -> None:
    shutil.rmtree(folder / "data/star")
    names = {str(number): "star" for number in range(IMAGES_PER_CLASS)}
    (folder / "data/names.json").write_text(json.dumps(names))
    evaluate.main(arguments(folder, "--no-imagenet", "--images-per-class", "1"))
    result = json.loads((folder / "out/evaluation.json").read_text())
    by_name = result["quality"][-1]
    assert (by_name["name"], by_name["num_images"]) == ("4+2@1.5, by image name", result["num_held_out"])
    assert result["nearness"][-1]["name"] == by_name["name"]
    assert [row["name"] for row in result["classes"]] == ["circle", "square"]


def test_errors_name_what_does_not_fit(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def problem(*options: str) -> str:
        with pytest.raises(SystemExit):
            evaluate.main(arguments(folder, "--no-imagenet", *options))
        return capsys.readouterr().err

    assert "--classes 'moon': allowed are circle, square, star" in problem("--classes", "moon,star")
    assert "--settings 4+2@11: the guidance scale is at most 10" in problem("--settings", "4+2@11")
    assert "--settings 4@1: the model has 2 denoising stages" in problem("--settings", "4@1")
    assert "0 must be at least 1" in problem("--rounds", "0")
    assert "model 'none' is not in" in problem("--model", "none")
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE.replace("held_out_percent = 25", "held_out_percent = 0"))
    assert "holds out 0 images of this data (held_out_percent 0); at least 4 are needed" in problem()
    recipe.write_text(RECIPE.replace("channels = 1", "channels = 3"))
    assert "tiny:1 makes images of 1 x 16²; recipe shapes has 3 x 16²" in problem()
    recipe.write_text(RECIPE)
    (folder / "data/star").rename(folder / "data/sun")
    assert "tiny:1 and the data differ in their labels: star, sun" in problem()


class ToyNetworks(FeatureNetworks):
    """The class is the brightness by tens; features are coarse pixels."""

    def describe(self, split: Split) -> Description:
        pixels = split.images.double()
        coarse = torch.nn.functional.avg_pool2d(pixels, 16).flatten(1)
        distances = (pixels.mean((1, 2, 3)) / 20)[:, None] - torch.arange(10)
        return Description(
            distances.abs().argsort(1), {"classifier": coarse, "self-supervised": coarse.flip(1) * 3 + 5}
        )


NETWORKS = ToyNetworks(Classifier(8, 10), SelfSupervised(8), "black")


def toy_split(num_images: int, seed: int, noise: float = 4.0) -> Split:
    """Return flat images whose brightness tells the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (num_images,), generator=generator)
    corners = 20 * labels.view(-1, 1, 1, 1) + noise * torch.randn(num_images, 1, 2, 2, generator=generator)
    images: Tensor = torch.nn.functional.interpolate(corners.clamp(0, 255), size=32).to(torch.uint8)
    return Split(images, labels)


def toy_set(split: Split) -> ImageSet:
    return ImageSet("toy", split, NETWORKS.describe(split))


def test_figures_order_image_sets_by_their_likeness_to_the_reference() -> None:
    reference = ReferenceImages(NETWORKS, toy_split(300, seed=1))
    real, noisy = (reference.quality(toy_set(toy_split(300, 2, noise))) for noise in (4.0, 30.0))
    shifted_split = toy_split(300, 2)
    wrong = reference.quality(toy_set(Split(shifted_split.images, (shifted_split.labels + 5) % 10)))
    assert real.top_1 > 0.95
    assert wrong.top_1 < 0.05
    for network in ("classifier", "self-supervised"):
        assert noisy.fid[network] > 2 * real.fid[network]
        assert real.precision[network] > noisy.precision[network]
        assert wrong.fid == real.fid


def test_figures_of_large_sets_are_means_over_parts_of_equal_size() -> None:
    reference = ReferenceImages(NETWORKS, toy_split(300, seed=1))
    whole = toy_split(250, seed=2)
    parts = [reference.quality(toy_set(whole.take(rows))) for rows in torch.split(torch.arange(200), 100)]
    quality = reference.quality(toy_set(whole), part_size=100)
    assert quality.num_images == 250
    for figure in ("fid", "precision", "recall"):
        for network in ("classifier", "self-supervised"):
            mean = sum(getattr(part, figure)[network] for part in parts) / 2
            assert getattr(quality, figure)[network] == pytest.approx(mean)


def test_a_balanced_subset_goes_round_the_classes_without_repeating_images() -> None:
    split = Split(images=torch.arange(60).view(60, 1, 1, 1).to(torch.uint8), labels=torch.arange(60) % 3)
    first, second = balanced(split, 9), balanced(split, 9, skip=9)
    assert first.labels.tolist() == [0, 1, 2] * 3
    assert second.labels.tolist() == [0, 1, 2] * 3
    assert not set(first.images.flatten().tolist()) & set(second.images.flatten().tolist())
    assert first.labels.tolist() == (first.images.flatten() % 3).tolist()
    with pytest.raises(ValueError, match="61 images requested; there are only 60"):
        balanced(split, 61)


def test_items_are_spread_evenly() -> None:
    assert spread("abcdef", 3) == ("a", "c", "e")
    assert spread("ab", 4) == ("a", "a", "b", "b")


def test_tables_align() -> None:
    assert markdown_table(("images", "FID"), [("a", "1.50"), ("longer name", "10.25")]) == (
        "| images      |   FID |\n"
        "|:------------|------:|\n"
        "| a           |  1.50 |\n"
        "| longer name | 10.25 |"
    )  # fmt: skip


def test_the_grid_is_filled_row_by_row(tmp_path: Path) -> None:
    images = (torch.arange(5) * 40).view(5, 1, 1, 1).expand(5, 1, 8, 8).to(torch.uint8)
    save_grid(tmp_path / "new" / "grid.png", images, columns=3)
    with Image.open(tmp_path / "new" / "grid.png") as picture:
        assert picture.size == (24, 16)
        assert [picture.getpixel((x, 5)) for x in (0, 10, 20)] == [0, 40, 80]
        assert [picture.getpixel((x, 10)) for x in (0, 10, 20)] == [120, 160, 255]

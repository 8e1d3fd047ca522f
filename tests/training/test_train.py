"""A model of one's own: from a folder of images to a version that serves."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from diffusers import AutoencoderKL
from PIL import Image

from msf_cli.main import main
from msf_engine.repository import read_version
from msf_training.folder import load_folder
from msf_training.recipe import read_recipe, shipped_recipes
from msf_training.trainer import LoopConfig
from tests.models import tiny_recipe

RECIPE = tiny_recipe(
    """
held_out_percent = 20
balance = 0.5
flip = true
never_flipped = ["left"]
shift_pixels = 1
num_variants = 3
""",
    num_iterations=3,
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two classes of images of several sizes and kinds."""
    folder = tmp_path / "data"
    for label, (name, mode) in enumerate((("left", "RGBA"), ("right", "L"))):
        (folder / name).mkdir(parents=True)
        for number in range(6):
            image = Image.new(mode, (20 + number, 30), (250, 40 * label, 10 * number, 128) if mode == "RGBA" else 99)
            image.save(folder / name / f"{number}.{('png', 'webp')[number % 2]}")
    return folder


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "recipe.toml"
    file.write_text(RECIPE)
    return file


def train(tmp_path: Path, *arguments: str) -> str:
    """What it says; raises AssertionError where it fails."""
    result = CliRunner().invoke(main, train_arguments(tmp_path, *arguments))
    assert result.exit_code == 0, result.output
    return result.stdout


def train_arguments(tmp_path: Path, *arguments: str) -> list[str]:
    where = {"--data": "data", "--recipe": "recipe.toml", "--out": "out", "--model-repo": "repo"}
    paths = [each for option, name in where.items() for each in (option, str(tmp_path / name))]
    return ["train", *paths, "--device", "cpu", "--threads", "1", *arguments]


def test_a_folder_becomes_a_model_that_makes_images(data: Path, recipe: Path, tmp_path: Path) -> None:
    assert train(tmp_path) == f"{tmp_path / 'repo/shapes/1'}\n"
    version = read_version(tmp_path / "repo", "shapes")
    assert version.labels == ("left", "right")
    grids = {file.name for file in (tmp_path / "out/samples").iterdir()}
    assert grids == {"autoencoder-000003.png", "base-000003.png", "residual-000003.png"}
    settings = {
        "MSF_MODEL_REPO": str(tmp_path / "repo"),
        "MSF_CACHE_DIR": str(tmp_path / "cache"),
        "MSF_BACKEND": "eager",
        "MSF_BUCKETS": "1,2",
    }
    out = tmp_path / "image.png"
    made = CliRunner().invoke(main, ["generate", "--prompt", "right", "--scale", "1", "--out", str(out)], env=settings)
    assert made.exit_code == 0, made.output
    with Image.open(out) as image:
        assert (image.size, image.mode) == ((16, 16), "RGB")


def test_names_of_pictures_can_be_asked_for_beside_classes(data: Path, recipe: Path, tmp_path: Path) -> None:
    (data / "names.json").write_text('{"0": "nought", "1": "one", "2": "left", "9": "nothing here"}')
    recipe.write_text(RECIPE.replace("held_out_percent = 20", "held_out_percent = 0\nnamed_fraction = 0.5"))
    train(tmp_path)
    version = read_version(tmp_path / "repo", "shapes")
    assert version.labels == ("left", "right", "nought", "one")

    assert version.load().base.labels.weight.shape == (5, 32)  # the last is the null label
    names = load_folder(
        data, tmp_path / "out/images.npy", size=16, channels=3, background="white", held_out_percent=0
    ).train_names
    assert names.tolist() == 2 * [0, 1, -1, -1, -1, -1]

    for wrong, message in (
        ('{"0": "zero", "1": "one"}', "other classes or names"),
        ("{}", "names no picture"),
        ('["nought"]', "names.json must map"),
        ("{", "names.json is not JSON"),
    ):
        (data / "names.json").write_text(wrong)
        result = CliRunner().invoke(main, train_arguments(tmp_path, "--name", "other"))
        assert result.exit_code == 1
        assert message in result.output


def test_a_run_that_goes_on_repeats_nothing(data: Path, recipe: Path, tmp_path: Path) -> None:
    train(tmp_path)
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("*.*")}
    recipe.write_text(
        RECIPE.replace("num_steps = 1\nfit = { num_iterations = 3", "num_steps = 1\nfit = { num_iterations = 5")
    )
    assert train(tmp_path) == f"{tmp_path / 'repo/shapes/2'}\n"
    after = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("*.*")}
    assert {name for name in after if after[name] != before[name]} == {"residual.pt"}
    first, second = (read_version(tmp_path / "repo", "shapes", version).load() for version in ("1", "2"))
    assert torch.equal(first.base.out.weight, second.base.out.weight)
    assert not torch.equal(first.residual.out.weight, second.residual.out.weight)


def test_two_processes_share_the_work(data: Path, recipe: Path, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, "-m", "msf_cli.main", *train_arguments(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'repo/shapes/1'}\n"
    shared = read_version(tmp_path / "repo", "shapes").load()
    shutil.rmtree(tmp_path / "out")
    train(tmp_path)
    alone = read_version(tmp_path / "repo", "shapes").load()
    assert not torch.equal(shared.base.out.weight, alone.base.out.weight)  # it saw twice as many images


def test_a_public_autoencoder_is_used_as_it_is(data: Path, recipe: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    public = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
    )
    public.save_pretrained(tmp_path / "vae", safe_serialization=True)
    train(tmp_path, "--autoencoder", str(tmp_path / "vae"))
    used = read_version(tmp_path / "repo", "shapes").load().autoencoder.kl
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    expected = public.to(torch.bfloat16).float().encode(image).latent_dist.mean
    assert torch.allclose(used.encode(image).latent_dist.mean, expected, atol=1e-5)
    assert not (tmp_path / "out/autoencoder.pt").exists()


def test_a_run_begins_with_a_model_of_the_repository(data: Path, recipe: Path, tmp_path: Path) -> None:
    train(tmp_path)
    first = read_version(tmp_path / "repo", "shapes").load()
    (data / "left").rename(data / "up")
    recipe.write_text(RECIPE.replace("learning_rate = 1e-3", "learning_rate = 1e-30"))
    shutil.rmtree(tmp_path / "out")
    train(tmp_path, "--name", "moved", "--init-from", "shapes:1")
    version = read_version(tmp_path / "repo", "moved")
    second = version.load()
    assert version.labels == ("right", "up")
    kept = {key: value for key, value in first.state_dict().items() if not key.endswith("labels.weight")}
    moved = second.state_dict()
    assert [key for key, value in kept.items() if not torch.allclose(value, moved[key], atol=1e-20)] == []
    for was, now in ((first.base, second.base), (first.residual, second.residual)):
        left, right, null = was.labels.weight
        own_right, up, own_null = now.labels.weight
        assert torch.allclose(own_right, right)
        assert torch.allclose(own_null, null)
        assert not torch.allclose(up, left)
    assert not (tmp_path / "out/autoencoder.pt").exists()


def test_what_is_wrong_is_named(data: Path, recipe: Path, tmp_path: Path) -> None:
    def problem(*arguments: str) -> str:
        result = CliRunner().invoke(main, train_arguments(tmp_path, *arguments))
        assert result.exit_code == 1, result.output
        return result.output

    assert "'nothing' is no recipe; allowed: emoji, msf-" in problem("--recipe", "nothing")
    assert "--name 'Große'" in problem("--name", "Große")
    recipe.write_text(RECIPE.replace("image_size = 16", "image_size = 18"))
    assert "image_size 18 must be a multiple of 8" in problem()
    recipe.write_text(RECIPE.replace("depth = 1", 'size = "S"', 1))
    assert "base: Value error, needs either size" in problem()
    recipe.write_text(RECIPE)
    (data / "left" / "broken.png").write_bytes(b"no image")
    assert "broken.png cannot be read as an image" in problem()
    (data / "left" / "broken.png").unlink()
    (data / "empty").mkdir()
    assert f"{data / 'empty'} holds no image" in problem()
    (data / "empty").rmdir()
    train(tmp_path)
    assert "model 'none' is not in" in problem("--init-from", "none")
    assert "model '' is not in" in problem("--init-from", ":1")
    assert "has no version '7'; it has 1" in problem("--init-from", "shapes:7")
    assert "give either it or --autoencoder" in problem("--init-from", "shapes", "--autoencoder", str(data))
    recipe.write_text(RECIPE.replace("[residual]\nwidth = 32\ndepth = 1", "[residual]\nwidth = 32\ndepth = 2"))
    assert "cannot begin with shapes:1: the recipe's residual has depth 2 (there 1)" in problem("--init-from", "shapes")
    recipe.write_text(RECIPE.replace("image_size = 16", "image_size = 32"))
    assert "shapes:1 makes images of 3 x 16²; the recipe has 3 x 32²" in problem("--init-from", "shapes")
    recipe.write_text(RECIPE)
    shutil.copytree(data / "left", data / "above")
    assert "has other classes; give this one another --name" in problem()


def test_images_are_squared_laid_on_the_background_and_split_by_picture(tmp_path: Path) -> None:
    for name, count in (("a", 40), ("b", 40)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(count):
            for variant in ("", "--dark"):
                Image.new("RGBA", (8, 12), (0, 0, 0, 0)).save(tmp_path / "data" / name / f"{number}{variant}.png")
    found = load_folder(
        tmp_path / "data", tmp_path / "images.npy", size=4, channels=3, background="white", held_out_percent=25
    )
    assert found.train.images.shape[1:] == (3, 4, 4)
    assert found.train.images.min() == 255
    assert len(found.train) + len(found.held_out) == 160
    assert 0 < len(found.held_out) < 80
    assert len(found.held_out) % 4 == 0  # a picture's variants, and its namesake in the other class, together


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_are_whole(name: str) -> None:
    recipe = read_recipe(name)
    autoencoder = recipe.autoencoder.config(recipe.image_size, recipe.channels)
    grid = recipe.image_size // autoencoder.downsampling // 2
    for stage in (recipe.base, recipe.residual):
        stage.config(4, 0, grid, 10)  # raises where the numbers do not fit


def test_the_learning_rate_stays_and_then_cools_down() -> None:
    config = LoopConfig(num_iterations=1000, learning_rate=1.0, warmup_iterations=100, cooldown=0.2)
    assert [config.learning_rate_at(i) for i in (0, 99, 500, 800, 900)] == pytest.approx([0.01, 1, 1, 1, 0.5])
    assert config.learning_rate_at(999) == pytest.approx(0.005)

"""`msf train` turns class folders into a version that serves."""

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
from msf_scheduler.stage import Stage
from msf_training.class_folders import load_class_folders
from msf_training.image_files import ImageFormat
from msf_training.recipe import read_recipe, shipped_recipes
from tests.models import tiny_recipe

ROOT = Path(__file__).parents[2]
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


def write_data(folder: Path) -> None:
    """Write two classes of images of several sizes and file types, and the recipe."""
    for label, (name, mode) in enumerate((("left", "RGBA"), ("right", "L"))):
        (folder / "data" / name).mkdir(parents=True)
        for number in range(6):
            image = Image.new(mode, (20 + number, 30), (250, 40 * label, 10 * number, 128) if mode == "RGBA" else 99)
            image.save(folder / "data" / name / f"{number}.{('png', 'webp')[number % 2]}")
    (folder / "recipe.toml").write_text(RECIPE)


def train(folder: Path, *arguments: str) -> str:
    """Train in `folder` and return what `msf train` prints. Raises AssertionError if it fails."""
    result = CliRunner().invoke(main, train_arguments(folder, *arguments))
    assert result.exit_code == 0, result.output
    return result.stdout


def train_arguments(folder: Path, *arguments: str) -> list[str]:
    names = {"--data": "data", "--recipe": "recipe.toml", "--out": "out", "--model-repo": "repo"}
    paths = [part for option, name in names.items() for part in (option, str(folder / name))]
    return ["train", *paths, "--device", "cpu", "--threads", "1", *arguments]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished training: `data`, `recipe.toml`, `out` and `repo`. Tests leave it as it is."""
    folder = tmp_path_factory.mktemp("finished")
    write_data(folder)
    assert train(folder) == f"{folder / 'repo/shapes/1'}\n"
    return folder


@pytest.fixture
def after(finished: Path, tmp_path: Path) -> Path:
    """Copy of a finished training."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_class_folders_become_a_model_that_makes_images(finished: Path, tmp_path: Path) -> None:
    version = read_version(finished / "repo", "shapes")
    assert version.labels == ("left", "right")
    grids = {file.name for file in (finished / "out/samples").iterdir()}
    assert grids == {"autoencoder-000003.png", "base-000003.png", "residual-000003.png"}
    settings = {
        "MSF_MODEL_REPO": str(finished / "repo"),
        "MSF_CACHE_DIR": str(tmp_path / "cache"),
        "MSF_BACKEND": "eager",
        "MSF_BUCKETS": "1,2",
    }
    out = tmp_path / "image.png"
    result = CliRunner().invoke(
        main, ["generate", "--prompt", "right", "--scale", "1", "--out", str(out)], env=settings
    )
    assert result.exit_code == 0, result.output
    with Image.open(out) as image:
        assert (image.size, image.mode) == ((16, 16), "RGB")


def test_image_names_are_labels_and_a_public_autoencoder_is_used_unchanged(tmp_path: Path) -> None:
    write_data(tmp_path)
    torch.manual_seed(0)
    public = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
    )
    public.save_pretrained(tmp_path / "vae", safe_serialization=True)
    names = tmp_path / "data/names.json"
    names.write_text('{"0": "nought", "1": "one", "2": "left", "9": "nothing here"}')
    recipe = RECIPE.replace("held_out_percent = 20", "held_out_percent = 0\nnamed_fraction = 0.5")
    (tmp_path / "recipe.toml").write_text(recipe)
    train(tmp_path, "--autoencoder", str(tmp_path / "vae"))

    version = read_version(tmp_path / "repo", "shapes")
    model = version.load()
    assert version.labels == ("left", "right", "nought", "one")
    assert model.denoiser(Stage.BASE).labels.weight.shape == (5, 32)  # the last is the null label
    data = load_class_folders(tmp_path / "data", tmp_path / "out/images.npy", ImageFormat(16, 3, "white"))
    assert data.name_indices.tolist() == 2 * [0, 1, -1, -1, -1, -1]

    image = torch.rand(1, 3, 16, 16) * 2 - 1
    expected = public.to(torch.bfloat16).float().encode(image).latent_dist.mean
    assert torch.allclose(model.autoencoder.kl.encode(image).latent_dist.mean, expected, atol=1e-5)
    assert not (tmp_path / "out/autoencoder.pt").exists()

    for content, message in (
        ('{"0": "zero", "1": "one"}', "other labels"),
        ("{}", "names no training image"),
        ('["nought"]', "names.json must map"),
        ("{", "names.json is not JSON"),
    ):
        names.write_text(content)
        result = CliRunner().invoke(main, train_arguments(tmp_path, "--name", "other"))
        assert result.exit_code == 1
        assert message in result.output


def test_a_longer_training_repeats_nothing(after: Path) -> None:
    before = {file.name: file.stat().st_mtime_ns for file in (after / "out").glob("*.*")}
    longer = RECIPE.replace("num_steps = 1\nfit = { num_iterations = 3", "num_steps = 1\nfit = { num_iterations = 5")
    (after / "recipe.toml").write_text(longer)
    assert train(after) == f"{after / 'repo/shapes/2'}\n"
    times = {file.name: file.stat().st_mtime_ns for file in (after / "out").glob("*.*")}
    assert {name for name in times if times[name] != before[name]} == {"residual.pt"}
    first, last = (read_version(after / "repo", "shapes", version).load() for version in ("1", "2"))
    assert torch.equal(first.denoiser(Stage.BASE).out.weight, last.denoiser(Stage.BASE).out.weight)
    assert not torch.equal(first.denoiser(Stage.RESIDUAL).out.weight, last.denoiser(Stage.RESIDUAL).out.weight)


@pytest.mark.slow
def test_two_processes_share_the_work(finished: Path, tmp_path: Path) -> None:
    write_data(tmp_path)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = subprocess.run(
        [*torchrun, "-m", "msf_cli.main", *train_arguments(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout == f"{tmp_path / 'repo/shapes/1'}\n"
    shared, alone = (read_version(folder / "repo", "shapes").load() for folder in (tmp_path, finished))
    assert not torch.equal(
        shared.denoiser(Stage.BASE).out.weight, alone.denoiser(Stage.BASE).out.weight
    )  # it saw twice as many images


def test_a_training_starts_from_a_model_of_the_repository(after: Path) -> None:
    (after / "data/left").rename(after / "data/up")
    (after / "recipe.toml").write_text(RECIPE.replace("learning_rate = 1e-3", "learning_rate = 1e-30"))
    shutil.rmtree(after / "out")
    train(after, "--name", "moved", "--init-from", "shapes:1")
    version = read_version(after / "repo", "moved")
    first, second = read_version(after / "repo", "shapes").load(), version.load()
    assert version.labels == ("right", "up")
    weights = {key: value for key, value in first.state_dict().items() if not key.endswith("labels.weight")}
    moved = second.state_dict()
    assert [key for key, value in weights.items() if not torch.allclose(value, moved[key], atol=1e-20)] == []
    for stage in (Stage.BASE, Stage.RESIDUAL):
        old, new = first.denoiser(stage), second.denoiser(stage)
        old_left, old_right, old_null = old.labels.weight
        right, up, null = new.labels.weight
        assert torch.allclose(right, old_right)
        assert torch.allclose(null, old_null)
        assert not torch.allclose(up, old_left)
    assert not (after / "out/autoencoder.pt").exists()


def test_errors_name_what_is_wrong(after: Path) -> None:
    data, recipe = after / "data", after / "recipe.toml"

    def problem(*arguments: str) -> str:
        result = CliRunner().invoke(main, train_arguments(after, *arguments))
        assert result.exit_code == 1, result.output
        return result.output

    assert "unknown recipe 'nothing'; allowed: emoji, fashion-mnist, msf-" in problem("--recipe", "nothing")
    assert "--name 'Große'" in problem("--name", "Große")
    recipe.write_text(RECIPE.replace("image_size = 16", "image_size = 18"))
    assert "image_size 18 must be a multiple of 8" in problem()
    recipe.write_text(RECIPE.replace("depth = 1", 'size = "S"', 1))
    assert "base: Value error, needs either size" in problem()
    recipe.write_text(RECIPE)
    (data / "left" / "broken.png").write_bytes(b"no image")
    assert "1 of 13 image files below" in problem("--max-unreadable", "0")
    (data / "left" / "broken.png").unlink()
    (data / "empty").mkdir()
    assert f"{data / 'empty'} holds no image" in problem()
    (data / "empty").rmdir()
    assert "model 'none' is not in" in problem("--init-from", "none")
    assert "model '' is not in" in problem("--init-from", ":1")
    assert "has no version '7'; it has 1" in problem("--init-from", "shapes:7")
    assert "Invalid --init-from with --autoencoder" in problem("--init-from", "shapes", "--autoencoder", str(data))
    recipe.write_text(RECIPE.replace("[residual]\nwidth = 32\ndepth = 1", "[residual]\nwidth = 32\ndepth = 2"))
    message = "cannot start from shapes:1: the recipe's residual has depth 2 (there 1)"
    assert message in problem("--init-from", "shapes")
    recipe.write_text(RECIPE.replace("image_size = 16", "image_size = 32"))
    assert "shapes:1 makes images of 3 x 16²; the recipe has 3 x 32²" in problem("--init-from", "shapes")
    recipe.write_text(RECIPE)
    shutil.copytree(data / "left", data / "above")
    assert "has other labels; choose another --name" in problem()


def test_images_are_squared_laid_on_the_background_and_split_by_stem(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(40):
            for variant in ("", "--dark"):
                Image.new("RGBA", (8, 12), (0, 0, 0, 0)).save(tmp_path / "data" / name / f"{number}{variant}.png")
    data = load_class_folders(tmp_path / "data", tmp_path / "images.npy", ImageFormat(4, 3, "white"), 25)
    assert data.train.images.shape[1:] == (3, 4, 4)
    assert data.train.images.min() == 255
    assert len(data.train) + len(data.held_out) == 160
    assert 0 < len(data.held_out) < 80
    assert len(data.held_out) % 4 == 0  # an image's variants, and its namesake in the other class, together


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_describe_whole_models(name: str) -> None:
    recipe = read_recipe(name)
    autoencoder = recipe.autoencoder_config()
    grid = recipe.image_size // autoencoder.downsampling // 2
    for stage in recipe.stages.values():
        stage.denoiser_config(4, 0, grid, 10)  # raises if the numbers do not fit


@pytest.mark.parametrize("name", ["fashion-mnist", "emoji"])
def test_shipped_models_are_what_their_recipes_describe(name: str) -> None:
    version = read_version(ROOT / "model_repo", name)
    config, recipe = version.config, read_recipe(name)
    statistics = [stage.statistics for stage in config.stages]
    assert recipe.complete(recipe.autoencoder_config(), statistics, len(version.labels)) == config


def test_a_recipe_of_one_stage_trains_a_dit(tmp_path: Path) -> None:
    write_data(tmp_path)
    head, base = RECIPE.split("[residual]")[0].split("[base]")
    (tmp_path / "recipe.toml").write_text(f"{head}[denoise]\npatch_size = 2{base}")
    train(tmp_path)
    version = read_version(tmp_path / "repo", "shapes")
    [stage] = version.config.stages
    assert (stage.name, stage.denoiser.size, stage.denoiser.patch_size) == (Stage.DENOISE, 4, 2)
    assert version.load().denoiser(Stage.DENOISE).out.weight.any()
    assert list((tmp_path / "out/samples").glob("denoise-*.png"))

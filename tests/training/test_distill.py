"""`msf distill` turns a model of the repository into its next version, which needs few steps."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from msf_cli.main import main
from msf_engine.backends import get_backend
from msf_engine.executor import SampleRequest
from msf_engine.generate import generate
from msf_engine.plan_cache import PlanCache
from msf_engine.plan_loader import load_plans
from msf_engine.repository import read_version
from msf_training.distillation_recipe import read_distillation_recipe, shipped_distillation_recipes
from tests.models import tiny_repository

RECIPE = """
teacher_num_steps = 2
num_trajectories = 64
max_guidance_scale = 2.0
base = { num_steps = 2, fit = { num_iterations = 3, batch_size = 4, learning_rate = 1e-3 } }
residual = { num_steps = 1, fit = { num_iterations = 2, batch_size = 4, learning_rate = 1e-3 } }
"""


def distill(folder: Path, *arguments: str, model: str = "tiny") -> Result:
    options = {"--recipe": "recipe.toml", "--out": "out", "--model-repo": "repo"}
    paths = [part for option, name in options.items() for part in (option, str(folder / name))]
    command = ["distill", "--model", model, *paths, "--device", "cpu", "--threads", "1", *arguments]
    return CliRunner().invoke(main, command)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished distillation: `recipe.toml`, `out` and `repo`. Tests leave it as it is."""
    folder = tmp_path_factory.mktemp("finished")
    tiny_repository(folder / "repo")
    (folder / "recipe.toml").write_text(RECIPE)
    result = distill(folder)
    assert (result.exit_code, result.stdout) == (0, f"{folder / 'repo/tiny/2'}\n"), result.output
    return folder


@pytest.fixture
def after(finished: Path, tmp_path: Path) -> Path:
    """Copy of a finished distillation."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_the_new_version_makes_images_and_the_teacher_is_kept(finished: Path, tmp_path: Path) -> None:
    teacher, version = (read_version(finished / "repo", "tiny", number) for number in "12")
    assert version.config.is_flow_map
    assert not teacher.config.is_flow_map
    assert version.config.teacher == "1"
    assert (version.config.default_num_steps, version.config.sampling.max_guidance_scale) == (3, 2.0)
    assert version.labels == teacher.labels
    plans = load_plans(version, get_backend("eager", "fp32", 1), PlanCache(tmp_path), (1,))
    [image] = generate(plans, [SampleRequest(0, 1, 0, (2, 1), 1.5)])
    assert image.shape == (16, 16, 1)
    grids = {file.name for file in (finished / "out/samples").iterdir()}
    assert grids == {"base-000003.png", "residual-000002.png"}


def test_a_finished_distillation_is_written_again_without_training(after: Path) -> None:
    written_at = {file: file.stat().st_mtime_ns for file in (after / "out").rglob("*.pt")}
    result = distill(after, "--name", "quick", model="tiny:1")
    assert result.stdout == f"{after / 'repo/quick/1'}\n", result.output
    assert {file: file.stat().st_mtime_ns for file in (after / "out").rglob("*.pt")} == written_at
    for part in ("autoencoder", "base", "residual"):
        old, new = (after / "repo" / name / f"{part}.safetensors" for name in ("tiny/2", "quick/1"))
        assert old.read_bytes() == new.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "change", "message"),
    [
        ((), ("max_guidance_scale = 2.0", "max_guidance_scale = 3.0"), "choose another --out"),
        ((), ("base = { num_steps = 2", "base = { num_steps = 3"), "base.num_steps 3 must divide teacher_num_steps 2"),
        ((), ("num_trajectories = 64", "num_trajectories = 0"), "num_trajectories: Input should be greater than 0"),
        (("--name", "a/b"), None, "Invalid --name 'a/b'"),
        (("--recipe", "other"), None, "unknown recipe 'other'; allowed: "),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    after: Path, arguments: tuple[str, ...], change: tuple[str, str] | None, message: str
) -> None:
    if change:
        (after / "recipe.toml").write_text(RECIPE.replace(*change))
    result = distill(after, *arguments, model="tiny:1")
    assert result.exit_code == 1
    assert message in result.output


def test_flow_maps_are_not_distilled_again(after: Path) -> None:
    assert "tiny:2 is made of flow maps already" in distill(after).output


def test_a_model_is_distilled_by_the_recipe_of_its_name(after: Path) -> None:
    assert "fashion-mnist" in shipped_distillation_recipes()
    for name in shipped_distillation_recipes():
        read_distillation_recipe(name)
    command = ["distill", "--model", "tiny", "--model-repo", str(after / "repo")]
    assert "unknown recipe 'tiny'; allowed: " in CliRunner().invoke(main, command).output

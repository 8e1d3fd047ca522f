"""The commands that need no server."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image
from torch import nn

from msf_cli.main import main
from msf_engine.backends import eager
from msf_engine.backends.eager import EagerBackend
from msf_engine.device import cpu_name
from msf_engine.plan import PlanSpec
from tests.models import LABELS

NUM_PLANS = 3  # two denoising stages and the decoder


def run(settings: Mapping[str, str], *arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, env=settings)


def test_help_lists_the_commands() -> None:
    output = run({}, "--help").output
    for command in ("serve", "worker", "generate", "models", "compile"):
        assert command in output
    assert "MSF_REDIS_URL" in run({}, "serve", "--help").output
    assert run({}, "serv").exit_code == 2


def test_models_lists_the_repository(settings: dict[str, str]) -> None:
    result = run(settings, "models")
    assert result.exit_code == 0
    assert result.output.split() == ["tiny", "1", "16x16x1", "3", "classes", "4+2", "steps", "for", "tests"]


@pytest.mark.parametrize(
    ("num_images", "scale", "size"),
    [(1, 4, (64, 64)), (2, 1, (34, 16)), (5, 3, (148, 98)), (9, 1, (52, 52))],
)
def test_generate_writes_a_grid(
    settings: dict[str, str], tmp_path: Path, num_images: int, scale: int, size: tuple[int, int]
) -> None:
    out = tmp_path / "grid.png"
    arguments = ("-n", str(num_images), "--scale", str(scale), "--out", str(out))
    result = run(settings, "generate", "--prompt", "Star", *arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{out}\n"
    with Image.open(out) as image:
        assert image.size == size


def test_generate_names_a_server_that_does_not_answer(settings: dict[str, str], tmp_path: Path) -> None:
    arguments = ("generate", "--prompt", "Star", "--out", str(tmp_path / "grid.png"))
    result = run(settings, *arguments, "--url", "http://127.0.0.1:1")
    assert result.exit_code == 1
    assert result.output.startswith("Error: --url http://127.0.0.1:1: ")
    assert run(settings, *arguments, "--url", "no address").output.startswith("Error: --url no address: ")


def test_generate_repeats_images_of_equal_arguments_only(settings: dict[str, str], tmp_path: Path) -> None:
    def grid(*arguments: str) -> bytes:
        out = tmp_path / "grid.png"
        result = run(settings, "generate", "--out", str(out), "-n", "3", *arguments)
        assert result.exit_code == 0, result.output
        with Image.open(out) as image:
            return image.tobytes()

    first = grid("--prompt", "star", "--seed", "5")
    assert grid("--prompt", "2", "--seed", "5", "--model", "tiny:1") == first  # a class has a name and an id
    for others in (
        ("--prompt", "star", "--seed", "6"),
        ("--prompt", "circle", "--seed", "5"),
        ("--prompt", "star", "--seed", "5", "--num-steps", "20"),
        ("--prompt", "star", "--seed", "5", "--guidance-scale", "4"),
    ):
        assert grid(*others) != first


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--prompt", "dog"), ("--prompt", "'dog'", *LABELS, "0 to 2")),
        (("--prompt", "3"), ("--prompt", "'3'", *LABELS, "0 to 2")),
        (("--num-steps", "1"), ("--num-steps 1", "2 to 50")),
        (("--num-steps", "51"), ("--num-steps 51", "2 to 50")),
        (("--guidance-scale", "-1"), ("--guidance-scale -1.0", "0 to 10.0")),
        (("--guidance-scale", "nan"), ("--guidance-scale nan", "0 to 10.0")),
        (("-n", "0"), ("--num-images", "1<=x<=1024")),
        (("--seed", str(2**53)), ("--seed", "0<=x<=9007199254740991")),
        (("--model", "big"), ("'big'",)),
        (("--model", "tiny:9"), ("'tiny'", "'9'", "it has 1")),
        (("--model", "../tiny"), ("'../tiny'",)),
        (("--out", "no/such/folder/a.png"), ("--out", "no/such/folder is not a folder")),
        (("--out", "a.txt"), ("--out 'a.txt'", ".png")),
        (("--out", "a"), ("--out 'a'", ".png")),
    ],
)
def test_generate_refuses_invalid_options(
    settings: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, str],
    parts: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(settings, "generate", "--prompt", "star", "--out", "a.png", *arguments)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code != 0
    error = result.output.splitlines()[-1]
    assert error.startswith("Error: ")
    for part in parts:
        assert part in error
    assert list(tmp_path.iterdir()) == []


class CountingBackend(EagerBackend):
    """Stores a file per plan, as a compiler would, and counts."""

    num_compiled = 0

    def compile(self, spec: PlanSpec, network: nn.Module, folder: Path) -> None:
        CountingBackend.num_compiled += 1
        (folder / "graph").write_text(str(spec))


@pytest.fixture
def empty_cache(settings: dict[str, str], tmp_path: Path) -> None:
    settings["MSF_CACHE_DIR"] = str(tmp_path / "cache")


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> type[CountingBackend]:
    monkeypatch.setattr(eager, "BACKEND", CountingBackend)
    monkeypatch.setattr(CountingBackend, "num_compiled", 0)
    return CountingBackend


@pytest.mark.usefixtures("empty_cache")
def test_compile_fills_the_cache_once(settings: dict[str, str], counting: type[CountingBackend]) -> None:
    for _ in range(2):
        assert run(settings, "compile", "--backend", "eager").exit_code == 0
        assert counting.num_compiled == NUM_PLANS
        assert len(list(Path(settings["MSF_CACHE_DIR"]).rglob("graph"))) == NUM_PLANS


@pytest.mark.usefixtures("empty_cache")
def test_compile_takes_its_options(settings: dict[str, str], counting: type[CountingBackend]) -> None:
    options = ("--backend", "eager", "--precision", "bf16", "--buckets", "1,3", "--model", "tiny:1")
    result = run(settings, "compile", *options)
    assert result.exit_code == 0, result.output
    plans = run(settings, "plans").output
    assert counting.num_compiled == NUM_PLANS
    assert plans.count(" bf16 ") == NUM_PLANS
    records = [json.loads(file.read_text()) for file in Path(settings["MSF_CACHE_DIR"]).rglob("plan.json")]
    assert {tuple(each["bucket"] for each in record["validations"]) for record in records} == {(1, 3)}


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--buckets", "1,two"), ("--buckets", "two")),
        (("--buckets", "0"), ("--buckets", "0")),
        (("--model", "nothing"), ("nothing", "model_repo")),
        (("--backend", "tensorflow"), ("tensorflow", "openvino")),
        (("--backend", "openvino", "--precision", "fp16"), ("fp16", "fp32")),
    ],
)
def test_compile_names_the_invalid_option(
    settings: dict[str, str], options: tuple[str, str], parts: tuple[str, str]
) -> None:
    result = run(settings, "compile", *options)
    assert result.exit_code != 0
    for part in parts:
        assert part in result.output


@pytest.mark.usefixtures("empty_cache")
def test_plans_says_where_each_plan_was_verified(settings: dict[str, str]) -> None:
    assert "Compile them with: msf compile" in run(settings, "plans").output
    run(settings, "compile", "--backend", "eager", "--buckets", "2")
    lines = run(settings, "plans").output.splitlines()
    assert len(lines) == 1 + NUM_PLANS + 1
    assert [line.split()[1] for line in lines[1:-1]] == ["base", "decode", "residual"]
    assert all("verified on" in lines[0] and cpu_name() in line for line in lines[1:-1])

"""The commands that need no server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image
from torch import nn

from msf_serve.cli.main import main
from msf_serve.engine import backends
from msf_serve.engine.backends import Plan, Precision
from msf_serve.engine.backends.eager import EagerBackend
from msf_serve.engine.loading import DEFAULT_BUCKETS
from msf_serve.engine.plans import PlanCache, PlanSpec
from tests.models import LABELS


def run(settings: Mapping[str, str], *arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, env=settings)


def test_help_lists_the_commands() -> None:
    output = run({}, "--help").output
    for command in ("serve", "worker", "generate", "models", "compile"):
        assert command in output
    assert "MSF_REDIS_URL" in run({}, "serve", "--help").output
    assert run({}, "serv").exit_code == 2


def test_models_lists_what_the_repository_holds(settings: dict[str, str]) -> None:
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


def test_generate_makes_the_same_images_again_and_others_of_other_seeds(
    settings: dict[str, str], tmp_path: Path
) -> None:
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
        (("--num-steps", "1"), ("--num-steps", "1 is not in the range x>=2")),
        (("--num-steps", "51"), ("--num-steps 51", "2 to 50")),
        (("--guidance-scale", "-1"), ("--guidance-scale -1.0", "0 to 10.0")),
        (("--guidance-scale", "nan"), ("--guidance-scale nan", "0 to 10.0")),
        (("-n", "0"), ("--num-images", "1<=x<=1024")),
        (("--seed", str(2**53)), ("--seed", "0<=x<=9007199254740991")),
        (("--model", "big"), ("'big'",)),
        (("--model", "tiny:9"), ("'tiny'", "'9'", "it has 1")),
        (("--model", "../tiny"), ("'../tiny'",)),
        (("--out", "no/such/folder/a.png"), ("--out", "no/such/folder is not a folder")),
        (("--out", "a.txt"), ("--out a.txt", ".txt", ".png")),
        (("--out", "a"), ("--out a", "no suffix", ".png")),
    ],
)
def test_generate_refuses(
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


class CachingBackend(EagerBackend):
    """Compiles nothing either, but keeps each plan in the cache as a compiler would, and counts."""

    num_compiled = 0

    def plan(self, spec: PlanSpec, source: Callable[[], nn.Module], cache: PlanCache) -> Plan:
        if cache.get(spec, self.fingerprint) is None:
            CachingBackend.num_compiled += 1
            cache.put(spec, self.fingerprint, str(spec).encode())
        return super().plan(spec, source, cache)


def test_compile_fills_the_cache_and_then_compiles_nothing(
    settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def get_backend(name: str, precision: Precision | None, num_threads: int) -> CachingBackend:
        return CachingBackend("fp32", num_threads)

    monkeypatch.setattr(backends, "get_backend", get_backend)
    monkeypatch.setattr(CachingBackend, "num_compiled", 0)
    num_plans = 5 * len(DEFAULT_BUCKETS)  # two stages, guided and not, and the decoder
    for _ in range(2):
        assert run(settings, "compile").exit_code == 0
        assert CachingBackend.num_compiled == num_plans
        assert len(list(Path(settings["MSF_CACHE_DIR"]).rglob("plan.bin"))) == num_plans

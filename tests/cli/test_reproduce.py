"""`msf reproduce`: an image regenerated from its file."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from msf_cli.loading import load_model
from msf_cli.main import main
from msf_cli.settings import Settings
from msf_engine.executor import SampleRequest
from msf_engine.generate import generate
from msf_engine.repository import read_version
from msf_scheduler.jobs import JobSpec, Provenance, Reproducibility
from msf_worker.image_encoder import encode_image, runtime_fingerprint

SPEC = JobSpec(
    model="tiny", version="1", label=1, num_samples=1, first_index=3, seed=7, num_steps=6, guidance_scale=2.0
)


def reproduce(settings: dict[str, str], *arguments: str) -> Result:
    return CliRunner().invoke(main, ("reproduce", *arguments), env=settings)


@pytest.fixture
def image(settings: dict[str, str], tmp_path: Path) -> Path:
    """A strict image, the fourth of five in one batch, as a worker stores it."""
    return stored_image(settings, tmp_path / "image.png", "strict")


def stored_image(settings: dict[str, str], file: Path, reproducibility: Reproducibility) -> Path:
    """Write the fourth of five images in one batch."""
    version = read_version(Path(settings["MSF_MODEL_REPO"]), "tiny")
    read = Settings.model_validate({name.removeprefix("MSF_").lower(): value for name, value in settings.items()})
    _, plans = load_model(read, version)
    requests = [SampleRequest(1, 7, index, (4, 2), 2.0) for index in range(5)]
    pixels = generate(plans, requests, strict=reproducibility == "strict")[3]
    provenance = Provenance(fingerprint=runtime_fingerprint(plans.fingerprint), reproducibility=reproducibility)
    file.write_bytes(encode_image(pixels, SPEC, index=3, provenance=provenance))
    return file


def rewritten(image: Path, **changes: object) -> Path:
    with Image.open(image) as opened:
        fields = json.loads(opened.info["msf:parameters"]) | changes
        info = PngInfo()
        info.add_text("msf:parameters", json.dumps(fields, sort_keys=True))
        file = io.BytesIO()
        opened.save(file, "png", pnginfo=info, compress_level=4)
    image.write_bytes(file.getvalue())
    return image


def test_an_image_of_a_batch_is_regenerated_alone_to_the_byte(
    settings: dict[str, str], image: Path, tmp_path: Path
) -> None:
    result = reproduce(settings, str(image), "--out", str(tmp_path / "again.png"))
    assert result.exit_code == 0, result.output
    assert "identical to the byte" in result.output
    assert (tmp_path / "again.png").read_bytes() == image.read_bytes()


def test_another_fingerprint_is_named(settings: dict[str, str], image: Path) -> None:
    """The file has the fingerprint, so equal pixels may come in different bytes."""
    rewritten(image, fingerprint="f" * 64, seed=8)
    result = reproduce(settings, str(image))
    assert result.exit_code == 1
    assert "has fingerprint ffffffffffff, this machine " in result.output
    assert "grey levels" in result.output


def test_a_forged_image_differs(settings: dict[str, str], image: Path) -> None:
    result = reproduce(settings, str(rewritten(image, label=2)))
    assert result.exit_code == 1
    assert "pixels differ by" in result.output


def test_fast_mode_promises_no_bytes(settings: dict[str, str], tmp_path: Path) -> None:
    result = reproduce(settings, str(rewritten(stored_image(settings, tmp_path / "fast.png", "fast"), seed=8)))
    assert "was generated in fast mode, which does not promise equal bytes" in result.output


def test_other_images_are_refused(settings: dict[str, str], image: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    with Image.open(image) as opened:
        opened.save(tmp_path / "bare.png")
    for file in ("text.png", "bare.png"):
        result = reproduce(settings, str(tmp_path / file))
        assert result.exit_code == 1
        assert "is not a PNG of this service" in result.output
    result = reproduce(settings, str(rewritten(image, model="unknown")))
    assert "model 'unknown' is not in" in result.output

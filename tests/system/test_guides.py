"""Guides to models of one's own: examples are executed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.bench.shapes import RECIPE, write_shapes
from tests.engine.interchange.peers import timm_state, write_pipeline
from tests.system.test_documents import ROOT, DocumentedService, check_examples, service

__all__ = ["service"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_examples_of_the_guide_to_dit(service: DocumentedService, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small networks with random weights take the place of the published ones, which cannot be had here."""
    write_pipeline(
        service.folder / "DiT-XL-2-256",
        id2label=False,
        num_attention_heads=6,
        attention_head_dim=64,
        num_layers=1,
        num_embeds_ada_norm=1000,
    )
    torch.save(timm_state(width=384, num_classes=1000, depth=1), service.folder / "SiT-XL-2-256.pt")
    check_examples(ROOT / "docs/serve-dit.md", service, monkeypatch)
    assert (service.folder / "dog.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_examples_of_the_guide_from_pictures_to_an_api(
    service: DocumentedService, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The training is one of a few iterations on bars of 16x16 pixels."""
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    write_shapes(service.folder / "pictures")
    (service.folder / "pictures.toml").write_text(RECIPE)
    check_examples(ROOT / "docs/pictures-to-api.md", service, monkeypatch)
    for name in ("stars.png", "star.png", "star-of-diffusers.png"):
        assert (service.folder / name).read_bytes().startswith(b"\x89PNG")

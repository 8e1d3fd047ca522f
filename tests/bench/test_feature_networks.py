"""The feature networks learn, resume, and see images the same way every time; augmentations keep to their bounds."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench.evaluation.feature_networks import Classifier, SelfSupervised, classifier_loss, extract, train_networks
from bench.evaluation.feature_networks import self_supervised_loss as vicreg
from msf_training.augmentation import brighten, erase, flip, shift, tint, zoom
from msf_training.data import Split, to_unit_range
from msf_training.trainer import Loop, LoopConfig


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def toy() -> Split:
    """Ten classes of noise, each bright in a place of its own."""
    labels = torch.arange(200) % 10
    images = torch.randint(80, (200, 1, 32, 32), generator=torch.Generator().manual_seed(0))
    for number, label in enumerate(labels.tolist()):
        images[number, :, 3 * label : 3 * label + 4] += 170
    return Split(images=images.to(torch.uint8), labels=labels)


def loop_config(num_iterations: int) -> LoopConfig:
    return LoopConfig(num_iterations, learning_rate=5e-3, warmup_iterations=1, ema_decays=())


def test_the_classifier_learns_what_it_is_shown(toy: Split, tmp_path: Path) -> None:
    torch.manual_seed(0)
    classifier = Classifier(width=8)
    Loop(classifier, loop_config(40), tmp_path / "classifier.pt").run(
        lambda generator: classifier_loss(classifier, toy, generator, batch_size=64)
    )
    classifier.eval()
    with torch.no_grad():
        predicted = classifier(to_unit_range(toy.images)).argmax(1)
    assert (predicted == toy.labels).double().mean() > 0.9


def test_the_self_supervised_loss_falls_without_collapse(toy: Split, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = SelfSupervised(width=8, projection=32)

    def loss(iteration: int) -> float:
        return vicreg(network, toy, torch.Generator().manual_seed(iteration), batch_size=64)["loss"].item()

    before = loss(1)
    Loop(network, loop_config(30), tmp_path / "network.pt").run(
        lambda generator: vicreg(network, toy, generator, batch_size=64)
    )
    assert loss(1) < before
    assert extract(network.encoder, toy.images).std(0).mean() > 0.01


def test_networks_are_trained_once_and_then_loaded(toy: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = train_networks(toy, tmp_path, loop_config(1), loop_config(1))
    described = first.describe(toy.images[:20])

    def no_training(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(Loop, "_step", no_training)
    again = train_networks(toy, tmp_path, loop_config(1), loop_config(1))
    assert again.fingerprint() == first.fingerprint()
    assert torch.equal(again.describe(toy.images[:20]).classes, described.classes)
    assert {name: features.shape for name, features in described.features.items()} == {
        "classifier": (20, 128),
        "self-supervised": (20, 128),
    }


def test_the_fingerprint_changes_with_a_single_weight(toy: Split, tmp_path: Path) -> None:
    networks = train_networks(toy, tmp_path, loop_config(1), loop_config(1))
    before = networks.fingerprint()
    with torch.no_grad():
        networks.classifier.head.bias[3] += 1e-6
    assert networks.fingerprint() != before


def test_features_do_not_depend_on_the_batch_or_on_training_mode(toy: Split) -> None:
    encoder = Classifier(width=8).encoder.train()
    together, apart = extract(encoder, toy.images[:6]), extract(encoder, toy.images[:6], batch_size=1)
    torch.testing.assert_close(together, apart)


def one_pixel(row: int, column: int) -> Tensor:
    image = torch.full((1, 1, 32, 32), -1.0)
    image[..., row, column] = 0.5
    return image


def test_shift_moves_by_whole_pixels_within_its_bound(generator: torch.Generator) -> None:
    moved = shift(one_pixel(16, 10).expand(500, -1, -1, -1), 2, generator)
    _, _, rows, columns = (moved > -1).nonzero().unbind(1)
    assert len(rows) == 500
    assert set(rows.tolist()) == set(range(14, 19))
    assert set(columns.tolist()) == set(range(8, 13))
    assert moved.max() == 0.5
    assert torch.unique(moved).tolist() == [-1.0, 0.5]


def test_zoom_keeps_the_background_and_at_scale_one_the_image(generator: torch.Generator) -> None:
    images = torch.rand(4, 1, 32, 32, generator=generator) * 2 - 1
    torch.testing.assert_close(zoom(images, (1.0, 1.0), generator), images)
    smaller = zoom(torch.ones(8, 1, 32, 32), (1.5, 1.5), generator)
    assert smaller.amin((1, 2, 3)).tolist() == [-1.0] * 8
    assert (smaller > 0).float().mean().item() == pytest.approx(1 / 1.5**2, abs=0.05)


def test_brighten_leaves_the_background_dark_and_stays_in_range(generator: torch.Generator) -> None:
    images = torch.tensor([-1.0, 0.0, 1.0]).view(1, 1, 1, 3).expand(100, 1, 1, 3)
    background, middle, white = brighten(images, (0.5, 1.5), generator)[:, 0, 0].unbind(1)
    assert background.eq(-1).all()
    assert white.max() == 1
    assert middle.min() == pytest.approx(-0.5, abs=0.05)
    assert middle.max() == pytest.approx(0.5, abs=0.05)


def test_tint_scales_channels_apart_above_the_background(generator: torch.Generator) -> None:
    tinted = tint(torch.tensor([-1.0, 0.0]).expand(50, 3, 1, 2), (0.5, 1.5), generator)
    assert tinted[..., 0].eq(-1).all()
    assert tinted[..., 1].min() >= -0.5
    assert tinted[..., 1].max() <= 0.5
    assert (tinted[:, 0, 0, 1] != tinted[:, 1, 0, 1]).all()


def test_flip_mirrors_half_of_what_it_may(generator: torch.Generator) -> None:
    images = one_pixel(16, 10).expand(400, -1, -1, -1)
    flipped = flip(images, torch.arange(400) < 200, generator)
    _, _, _, columns = (flipped > -1).nonzero().unbind(1)
    assert set(columns[:200].tolist()) == {10, 31 - 10}
    assert (columns[:200] == 10).float().mean().item() == pytest.approx(0.5, abs=0.15)
    assert columns[200:].eq(10).all()


def test_erase_darkens_one_rectangle_of_bounded_size(generator: torch.Generator) -> None:
    erased = erase(torch.ones(200, 1, 32, 32), 0.5, generator) == -1
    heights, widths = erased.any(3).sum((1, 2)), erased.any(2).sum((1, 2))
    assert (erased.sum((1, 2, 3)) == heights * widths).all()
    assert heights.max() <= 17
    assert heights.max() >= 14
    assert widths.max() <= 17

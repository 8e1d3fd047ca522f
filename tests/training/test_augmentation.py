"""Augmentations keep to their bounds and leave the background alone."""

import pytest
import torch
from torch import Tensor

from msf_training.augmentation import Augmentation, brighten, erase, flip, shift, tint, zoom


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


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


def test_variants_are_flipped_and_shifted_in_turn_on_their_background() -> None:
    images = -one_pixel(16, 10).expand(2, -1, -1, -1)  # on white
    augmentation = Augmentation(may_flip=torch.tensor([True, False]), shift_pixels=3, sign=-1)
    labels = torch.tensor([0, 1])
    assert torch.equal(augmentation.variant(images, labels, 0), images)
    flipped = augmentation.variant(images, labels, 1)
    assert torch.equal(flipped[0], images[0].flip(-1))
    assert torch.equal(flipped[1], images[1])
    shifted = augmentation.variant(images, labels, 2)
    assert torch.equal(shifted, augmentation.variant(images, labels, 2))
    assert torch.unique(shifted).tolist() == [-0.5, 1.0]

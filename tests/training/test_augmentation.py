"""Augmentations keep to their bounds and leave the background alone."""

import pytest
import torch
from torch import Tensor

from msf_training.augmentation import Augmentation, flip, shift


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


def test_flip_mirrors_half_of_what_it_may(generator: torch.Generator) -> None:
    images = one_pixel(16, 10).expand(400, -1, -1, -1)
    flipped = flip(images, torch.arange(400) < 200, generator)
    _, _, _, columns = (flipped > -1).nonzero().unbind(1)
    assert set(columns[:200].tolist()) == {10, 31 - 10}
    assert (columns[:200] == 10).float().mean().item() == pytest.approx(0.5, abs=0.15)
    assert columns[200:].eq(10).all()


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

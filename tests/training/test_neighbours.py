"""What counts as a copy agrees with closed forms, mirrored or not."""

import pytest
import torch
from torch import Tensor

from msf_serve.training.neighbours import NUM_NEIGHBOURS, Neighbours, TrainingPoints, find_neighbours


def on_a_line(positions: Tensor, may_flip: bool = False) -> TrainingPoints:
    """Points at `positions` (M,) of the first axis; mirrored ones lie as far on the other side of 0."""
    plain = torch.stack((positions, torch.zeros_like(positions)), dim=1)
    return TrainingPoints(plain, -plain, torch.full((len(plain),), may_flip))


def at(*positions: float) -> Tensor:
    return torch.tensor([[position, 0.0] for position in positions])


def test_neighbours_come_by_rising_distance() -> None:
    found = find_neighbours(at(2.2, -5.0), on_a_line(torch.arange(5.0)), chunk=1)
    assert found.rows.tolist() == [[2, 3, 1, 4, 0], [0, 1, 2, 3, 4]]
    torch.testing.assert_close(found.distances[0], torch.tensor([0.2, 0.8, 1.2, 1.8, 2.2]))
    assert not found.mirrored.any()


def test_the_ratio_is_to_the_mean_of_the_next_fifty() -> None:
    positions = torch.arange(1.0, 200.0)
    found = find_neighbours(at(0.0), on_a_line(positions))
    assert found.rows.shape == (1, 1 + NUM_NEIGHBOURS)
    assert found.ratios.item() == pytest.approx(1 / ((2 + 51) / 2))


@pytest.mark.parametrize(("nearest", "memorised"), [(0.32, 1.0), (0.34, 0.0), (0.0, 1.0)])
def test_a_copy_lies_within_a_third_of_the_others_distance(nearest: float, memorised: float) -> None:
    others = torch.ones(NUM_NEIGHBOURS)
    found = find_neighbours(at(0.0), on_a_line(torch.cat((torch.tensor([nearest]), others))))
    assert found.memorised == memorised


def test_the_share_counts_every_image() -> None:
    distances = torch.tensor([[1.0, 9.0, 9.0], [8.0, 9.0, 9.0], [3.1, 9.0, 9.0], [2.9, 9.0, 9.0]])
    found = Neighbours(torch.zeros(4, 3, dtype=torch.int64), distances, torch.zeros(4, 3, dtype=torch.bool))
    assert found.memorised == 0.5


def test_mirrored_images_count_where_they_may_be_flipped_and_once_each() -> None:
    positions = torch.tensor([1.0, 3.0])
    allowed = find_neighbours(at(-1.25), on_a_line(positions, may_flip=True))
    assert allowed.rows.tolist() == [[0, 1]]
    assert allowed.mirrored.tolist() == [[True, True]]
    torch.testing.assert_close(allowed.distances, torch.tensor([[0.25, 1.75]]))
    refused = find_neighbours(at(-1.25), on_a_line(positions))
    torch.testing.assert_close(refused.distances, torch.tensor([[2.25, 4.25]]))


def test_a_small_distance_far_from_the_origin_is_not_rounded_away() -> None:
    found = find_neighbours(at(1000.001), on_a_line(torch.tensor([1000.0, 1001.0])))
    assert found.distances[0, 0].item() == pytest.approx(0.001, rel=0.1)


def test_one_training_image_is_too_few() -> None:
    with pytest.raises(ValueError, match="at least 2 training images, got 1"):
        find_neighbours(at(0.0), on_a_line(torch.ones(1)))

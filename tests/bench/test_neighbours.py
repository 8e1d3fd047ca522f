"""Copies among neighbours agree with closed forms, mirrored, shifted or not."""

import pytest
import torch
from torch import Tensor

from bench.evaluation.nearness import coarse_pixels, coarse_views
from bench.evaluation.neighbours import NUM_NEIGHBOURS, Neighbours, TrainingPoints, find_neighbours


def on_a_line(positions: Tensor, may_flip: bool = False) -> TrainingPoints:
    """Return training points at `positions` (M,) of the first axis."""
    points = torch.stack((positions, torch.zeros_like(positions)), dim=1)
    return TrainingPoints(points, torch.full((len(points),), may_flip))


def near(images: Tensor, training: TrainingPoints, chunk: int = 64) -> Neighbours:
    """Find the neighbours of images (N, D) in one view; mirrored ones lie on the other side of 0."""
    return find_neighbours(images[None], -images[None], training, chunk)


def at(*positions: float) -> Tensor:
    return torch.tensor([[position, 0.0] for position in positions])


def test_neighbours_come_by_rising_distance() -> None:
    neighbours = near(at(2.2, -5.0), on_a_line(torch.arange(5.0)), chunk=1)
    assert neighbours.rows.tolist() == [[2, 3, 1, 4, 0], [0, 1, 2, 3, 4]]
    assert neighbours.distances[0].tolist() == pytest.approx([0.2, 0.8, 1.2, 1.8, 2.2])
    assert not neighbours.mirrored.any()


def test_the_ratio_is_to_the_mean_of_the_next_fifty() -> None:
    positions = torch.arange(1.0, 200.0)
    neighbours = near(at(0.0), on_a_line(positions))
    assert neighbours.rows.shape == (1, 1 + NUM_NEIGHBOURS)
    assert neighbours.ratios.item() == pytest.approx(1 / ((2 + 51) / 2))


@pytest.mark.parametrize(("nearest", "memorised"), [(0.32, 1.0), (0.34, 0.0), (0.0, 1.0)])
def test_a_copy_lies_within_a_third_of_the_others_distance(nearest: float, memorised: float) -> None:
    others = torch.ones(NUM_NEIGHBOURS)
    neighbours = near(at(0.0), on_a_line(torch.cat((torch.tensor([nearest]), others))))
    assert neighbours.memorised == memorised


def test_the_share_counts_every_image() -> None:
    distances = torch.tensor([[1.0, 9.0, 9.0], [8.0, 9.0, 9.0], [3.1, 9.0, 9.0], [2.9, 9.0, 9.0]])
    neighbours = Neighbours(torch.zeros(4, 3, dtype=torch.int64), distances, torch.zeros(4, 3, dtype=torch.bool))
    assert neighbours.memorised == 0.5


def test_mirrored_images_count_where_they_may_be_flipped_and_once_each() -> None:
    positions = torch.tensor([1.0, 3.0])
    allowed = near(at(-1.25), on_a_line(positions, may_flip=True))
    assert allowed.rows.tolist() == [[0, 1]]
    assert allowed.mirrored.tolist() == [[True, True]]
    assert allowed.distances.tolist() == [[0.25, 1.75]]
    refused = near(at(-1.25), on_a_line(positions))
    assert refused.distances.tolist() == [[2.25, 4.25]]


def test_the_nearest_view_of_an_image_counts() -> None:
    views = torch.stack((at(10.0, 20.0), at(1.5, 30.0)))
    neighbours = find_neighbours(views, views, on_a_line(torch.tensor([1.0, 19.0])))
    assert neighbours.distances.tolist() == [[0.5, 9.0], [1.0, 19.0]]
    assert neighbours.rows.tolist() == [[0, 1], [1, 0]]


def test_a_small_distance_far_from_the_origin_is_not_rounded_away() -> None:
    neighbours = near(at(1000.001), on_a_line(torch.tensor([1000.0, 1001.0])))
    assert neighbours.distances[0, 0].item() == pytest.approx(0.001, rel=0.1)


def test_one_training_image_is_too_few() -> None:
    with pytest.raises(ValueError, match="at least 2 training images, got 1"):
        near(at(0.0), on_a_line(torch.ones(1)))


def test_a_shifted_image_is_one_of_its_views() -> None:
    image = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    image[..., 8:20, 8:20] = 40
    views = coarse_views(image, "white", 4)
    assert views.shape == (9, 1, 3 * 16 * 16)
    assert torch.equal(views[4], coarse_pixels(image, "white"))
    shifted = coarse_pixels(image.roll((4, -4), (2, 3)), "white")
    assert [torch.equal(view, shifted) for view in views].count(True) == 1
    assert len(coarse_views(image, "white", 0)) == 1

"""The metrics agree with closed forms and order what is known to be better and worse."""

import math

import pytest
import torch

from bench.evaluation.metrics import fid, precision_recall, psnr, top_k


def gaussian(count: int, std: torch.Tensor, mean: float, seed: int) -> torch.Tensor:
    """Points whose sample mean and covariance are exactly `mean` and diag(std²)."""
    points = torch.randn(count, len(std), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    points -= points.mean(0)
    values, vectors = torch.linalg.eigh(points.T.cov())
    whitened: torch.Tensor = points @ vectors / values.sqrt()
    return whitened * std + mean


def test_fid_of_gaussians_is_their_closed_form() -> None:
    std_a, std_b = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 2.0, 0.5])
    a, b = gaussian(500, std_a, 0.0, seed=1), gaussian(400, std_b, 1.5, seed=2)
    expected = 3 * 1.5**2 + (std_a - std_b).square().sum().item()
    assert fid(a, b) == pytest.approx(expected)
    assert fid(b, a) == pytest.approx(expected)


def test_fid_of_correlated_gaussians_is_the_trace_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    mix_a, mix_b = torch.randn(2, 4, 4, generator=generator, dtype=torch.float64)
    a, b = gaussian(300, torch.ones(4), 0.0, seed=1) @ mix_a, gaussian(300, torch.ones(4), 0.0, seed=2) @ mix_b
    covariance_a, covariance_b = mix_a.T @ mix_a, mix_b.T @ mix_b
    cross = torch.linalg.eigvals(covariance_a @ covariance_b).real.sqrt().sum()
    expected = covariance_a.trace() + covariance_b.trace() - 2 * cross
    assert fid(a, b) == pytest.approx(expected.item())


def test_fid_of_a_set_with_itself_is_zero_even_with_fewer_images_than_features() -> None:
    few = torch.randn(10, 64, generator=torch.Generator().manual_seed(0))
    assert fid(few, few) == pytest.approx(0, abs=1e-9)


def test_fid_is_biased_upwards_at_small_numbers() -> None:
    points = torch.randn(8000, 32, generator=torch.Generator().manual_seed(0))
    assert fid(points[:500], points[500:1000]) > 3 * fid(points[:4000], points[4000:])


def test_precision_and_recall_of_a_set_with_itself_are_one() -> None:
    points = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)) + 1000
    assert precision_recall(points, points) == (1.0, 1.0)


def test_a_dropped_mode_costs_recall_and_an_invented_one_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    near, far = torch.randn(2, 3000, 2, generator=generator)
    far = far + 100
    two_modes = torch.cat((near[:1000], far[:1000]))
    one_mode = near[1000:3000]
    precision, recall = precision_recall(real=two_modes, generated=one_mode)
    assert precision > 0.95
    assert recall == pytest.approx(0.5, abs=0.03)
    precision, recall = precision_recall(real=one_mode, generated=two_modes)
    assert precision == pytest.approx(0.5, abs=0.03)
    assert recall > 0.95


def test_precision_counts_what_lies_within_the_kth_neighbours_distance() -> None:
    real = torch.arange(5.0)[:, None]  # every ball with k = 1 reaches 1 to each side
    generated = torch.tensor([-1.0, -1.1, 2.5, 5.0, 5.1])[:, None]
    precision, _ = precision_recall(real, generated, k=1)
    assert precision == pytest.approx(3 / 5)


def test_features_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got \(5, 3\) and \(5, 4\)"):
        fid(torch.zeros(5, 3), torch.zeros(5, 4))
    with pytest.raises(ValueError, match="at least 2 images"):
        fid(torch.zeros(1, 3), torch.zeros(5, 3))
    with pytest.raises(ValueError, match="k = 3 neighbours need more images than 3 real, 9 generated"):
        precision_recall(torch.zeros(3, 2), torch.zeros(9, 2))


def test_top_k_looks_at_the_first_k_of_the_ranking() -> None:
    ranking = torch.tensor([[2, 0, 1, 3], [1, 3, 0, 2], [0, 1, 2, 3], [3, 2, 1, 0]])
    labels = torch.tensor([2, 3, 2, 0])
    assert [top_k(ranking, labels, k) for k in (1, 2, 3, 4)] == [0.25, 0.5, 0.75, 1.0]


def test_psnr_is_its_closed_form_and_a_mean_over_images() -> None:
    black = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    grey = black.clone()
    grey[0], grey[1] = 51, 1  # a fifth, and one, of 255
    expected = (20 * math.log10(5) + 20 * math.log10(255)) / 2
    assert psnr(black, grey) == pytest.approx(expected)
    assert psnr(grey, black) == pytest.approx(expected)
    assert psnr(black, black) == math.inf

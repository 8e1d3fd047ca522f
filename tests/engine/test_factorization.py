from __future__ import annotations

import pytest
import torch

from msf_engine.factorization import compose, decompose, down, up


@pytest.fixture
def latent() -> torch.Tensor:
    return torch.randn(3, 4, 8, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_compose_is_the_exact_inverse(latent: torch.Tensor) -> None:
    base, residual = decompose(latent)
    assert base.shape == (3, 4, 4, 3)
    assert residual.shape == (3, 12, 4, 3)
    torch.testing.assert_close(compose(base, residual), latent, rtol=0, atol=1e-14)


def test_decompose_inverts_compose(latent: torch.Tensor) -> None:
    base, residual = torch.randn(2, 3, 5, 5), torch.randn(2, 9, 5, 5)
    parts = decompose(compose(base, residual))
    torch.testing.assert_close(parts, (base, residual))


def test_down_of_a_composed_latent_is_its_base(latent: torch.Tensor) -> None:
    base, residual = torch.randn(2, 3, 5, 5), 100 * torch.randn(2, 9, 5, 5)
    torch.testing.assert_close(down(compose(base, residual)), base, rtol=0, atol=1e-4)


def test_a_base_without_residual_is_its_doubling(latent: torch.Tensor) -> None:
    base, _ = decompose(latent)
    torch.testing.assert_close(compose(base, latent.new_zeros(3, 12, 4, 3)), up(base))


def test_the_sub_bands_are_orthonormal(latent: torch.Tensor) -> None:
    base, residual = decompose(latent)
    energy = 4 * base.square().sum() + residual.square().sum()  # the mean is half of the orthonormal LL
    torch.testing.assert_close(energy, latent.square().sum())


def test_sub_bands_are_ordered_horizontal_vertical_diagonal() -> None:
    columns = torch.tensor([[1.0, -1.0], [1.0, -1.0]])[None, None]
    rows, checks = columns.mT, torch.tensor([[1.0, -1.0], [-1.0, 1.0]])[None, None]
    for band, pattern in enumerate((columns, rows, checks)):
        base, residual = decompose(pattern)
        assert base.item() == 0
        assert residual.flatten().tolist() == [2.0 if index == band else 0.0 for index in range(3)]

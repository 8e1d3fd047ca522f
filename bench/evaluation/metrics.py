"""Figures that compare image sets in a network's feature space: FID, precision and recall, class accuracy.

FID is biased upwards, more with fewer images, by an amount that depends on the features (Chong & Forsyth, arXiv
1911.07023); the k-NN manifolds of precision and recall change with the number of images too. So figures compare only
if network, reference and number of images are the same.
"""

from __future__ import annotations

import torch
from torch import Tensor


def fid(a: Tensor, b: Tensor) -> float:
    """Return the Fréchet distance of Gaussians fitted to features (N, D), (M, D) (Heusel et al., arXiv 1706.08500)."""
    _check_features(a, b)
    a, b = a.double(), b.double()
    mean_distance = (a.mean(0) - b.mean(0)).square().sum()
    root_a, root_b = _covariance_root(a), _covariance_root(b)
    # tr sqrt(A B) of A = RᵀR and B = SᵀS is the sum of the singular values of R Sᵀ.
    cross = torch.linalg.matrix_norm(root_a @ root_b.T, "nuc")
    return float(mean_distance + root_a.square().sum() + root_b.square().sum() - 2 * cross)


def precision_recall(real: Tensor, generated: Tensor, k: int = 3) -> tuple[float, float]:
    """Return improved precision and recall (Kynkäänniemi et al., arXiv 1904.06991) of features (N, D) and (M, D).

    A set's manifold is the union of balls around its members, each with its k-th nearest neighbour on the surface.
    Precision is the share of `generated` inside `real`'s manifold, recall that of `real` inside `generated`'s.
    """
    _check_features(real, generated)
    if min(len(real), len(generated)) <= k:
        raise ValueError(f"k = {k} neighbours need more images than {len(real)} real, {len(generated)} generated")
    center = real.mean(0)  # distances come from products, whose rounding grows with the distance to the origin
    real, generated = (real - center).float(), (generated - center).float()
    precision = _share_inside(generated, real, _radii(real, k))
    recall = _share_inside(real, generated, _radii(generated, k))
    return precision, recall


def top_k(ranking: Tensor, labels: Tensor, k: int) -> float:
    """Return the share of images whose class (N,) is among the first k of a classifier's ranking (N, K)."""
    return (ranking[:, :k] == labels[:, None]).any(dim=1).double().mean().item()


def psnr(a: Tensor, b: Tensor) -> float:
    """Return the mean over the images of the peak signal-to-noise ratio in dB; uint8 (N, C, H, W) both."""
    squared_error = (a.double() - b.double()).square().mean(dim=(1, 2, 3))
    return (10 * (255**2 / squared_error).log10()).mean().item()


def _check_features(a: Tensor, b: Tensor) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"features must be (N, D) and (M, D), got {tuple(a.shape)} and {tuple(b.shape)}")
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a covariance needs at least 2 images, got {len(a)} and {len(b)}")


def _covariance_root(features: Tensor) -> Tensor:
    """Return R (min(N, D), D) with RᵀR the covariance of features (N, D)."""
    centered: Tensor = (features - features.mean(0)) / (len(features) - 1) ** 0.5
    if len(features) <= features.shape[1]:
        return centered
    values, vectors = torch.linalg.eigh(centered.T @ centered)
    root: Tensor = values.clamp(min=0).sqrt()[:, None] * vectors.T
    return root


def _radii(points: Tensor, k: int, chunk: int = 1000) -> Tensor:
    """Return the distance from each of the points (N, D) to its k-th nearest other point: (N,)."""
    nearest = [torch.cdist(part, points).topk(k + 1, largest=False).values for part in torch.split(points, chunk)]
    return torch.cat(nearest)[:, k]  # the nearest is the point itself


def _share_inside(points: Tensor, centers: Tensor, radii: Tensor, chunk: int = 1000) -> float:
    """Return the share of the points (N, D) that lie in at least one ball."""
    inside = [(torch.cdist(part, centers) <= radii).any(dim=1) for part in torch.split(points, chunk)]
    return torch.cat(inside).double().mean().item()

"""The multi-scale factorization: a latent is a low-resolution base plus a high-resolution residual.

Our reading of MSF (arXiv 2501.13349): the base is the 2x2 mean of the latent. The remainder has zero mean in every 2x2
block, so it is represented by the three orthonormal Haar sub-bands LH, HL and HH, without redundant dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor


def down(latent: Tensor) -> Tensor:
    """Return the 2x2 mean: (B, C, H, W) -> (B, C, H/2, W/2)."""
    a, b, c, d = _corners(latent)
    return (a + b + c + d) / 4


def up(base: Tensor) -> Tensor:
    """Double by nearest neighbours: (B, C, h, w) -> (B, C, 2h, 2w)."""
    return _assemble(base, base, base, base)


def decompose(latent: Tensor) -> tuple[Tensor, Tensor]:
    """Split (B, C, H, W) into base (B, C, H/2, W/2) and residual sub-bands (B, 3C, H/2, W/2), ordered LH, HL, HH."""
    a, b, c, d = _corners(latent)
    lh = (a - b + c - d) / 2
    hl = (a + b - c - d) / 2
    hh = (a - b - c + d) / 2
    return (a + b + c + d) / 4, torch.cat((lh, hl, hh), dim=1)


def compose(base: Tensor, residual: Tensor) -> Tensor:
    """Invert `decompose` exactly: (B, C, h, w) and (B, 3C, h, w) -> (B, C, 2h, 2w)."""
    lh, hl, hh = residual.chunk(3, dim=1)
    return _assemble(
        base + (lh + hl + hh) / 2,
        base + (-lh + hl - hh) / 2,
        base + (lh - hl - hh) / 2,
        base + (-lh - hl + hh) / 2,
    )


def _corners(latent: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the four members of each 2x2 block: top left, top right, bottom left, bottom right."""
    return latent[..., ::2, ::2], latent[..., ::2, 1::2], latent[..., 1::2, ::2], latent[..., 1::2, 1::2]


def _assemble(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    batch, channels, height, width = a.shape
    top = torch.stack((a, b), dim=-1)  # (B, C, h, w, 2)
    bottom = torch.stack((c, d), dim=-1)
    return torch.stack((top, bottom), dim=3).reshape(batch, channels, 2 * height, 2 * width)

"""The module that plans of a denoising step are compiled from."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from msf_engine.denoiser import Denoiser


class StepModule(nn.Module):
    """One whole denoising step of one stage, for samples at any step, label and guidance scale.

    A guided step evaluates every sample twice, with its label and with the null label (classifier-free guidance,
    Ho & Salimans, arXiv 2207.12598).
    """

    def __init__(self, denoiser: Denoiser, *, guided: bool) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.guided = guided

    def forward(
        self,
        x: Tensor,
        d_prev: Tensor,
        cond: Tensor,
        time_embedding: Tensor,
        labels: Tensor,
        w: Tensor,
        a: Tensor,
        b: Tensor,
        c: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Map x, d_prev (B, C, h, w), cond (B, K, h, w), time_embedding (B, D), labels, w, a, b, c (B,) to d and x'."""
        if self.guided:
            batch = x.shape[0]
            both_labels = torch.cat((labels, torch.full_like(labels, self.denoiser.null_label)))
            velocity = self.denoiser(_twice(x), _twice(time_embedding), both_labels, _twice(cond)).float()
            conditional, null = velocity.view(2, batch, *velocity.shape[1:]).unbind(0)
            d = null + _per_row(w) * (conditional - null)
        else:
            d = self.denoiser(x, time_embedding, labels, cond).float()
        return d, _per_row(a) * x + _per_row(b) * d + _per_row(c) * d_prev


def _twice(x: Tensor) -> Tensor:
    return x.unsqueeze(0).expand(2, *x.shape).reshape(2 * x.shape[0], *x.shape[1:])


def _per_row(x: Tensor) -> Tensor:
    return x[:, None, None, None]

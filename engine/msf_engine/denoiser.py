"""The denoiser: a DiT with adaLN-Zero (Peebles & Xie, arXiv 2212.09748), for either stage.

The order of the modules is the order of the data. The time embedding is an input: it is the same for every sample of a
timestep, so it is computed once, and in float32 even if the rest of the network runs in lower precision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msf_engine.time_embedding import TIME_FEATURES, TimeFeatures, TimeInput, time_inputs

SIZES = {
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "XL": (1152, 28, 16),
}  # width, depth, heads; table 1


def position_embedding(size: int, width: int, *, columns_first: bool = False) -> Tensor:
    """Return the fixed two-dimensional sine-cosine embedding: (size * size, width)."""
    quarter = width // 4
    frequencies = torch.exp(-math.log(10_000) * torch.arange(quarter, dtype=torch.float64) / quarter)
    angles = torch.arange(size, dtype=torch.float64)[:, None] * frequencies[None]  # (size, quarter)
    axis = torch.cat((angles.sin(), angles.cos()), dim=1)  # (size, width / 2)
    rows = axis[:, None].expand(size, size, -1)
    columns = axis[None].expand(size, size, -1)
    halves = (columns, rows) if columns_first else (rows, columns)
    return torch.cat(halves, dim=2).reshape(size * size, -1).float()


def rotary_embedding(size: int, head_width: int) -> Tensor:
    """Return cosines and sines of a token's row, then column, two of each in turn: (2, size * size, head_width)."""
    half = head_width // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(0, half, 2, dtype=torch.float64) / half)
    axis = torch.arange(size, dtype=torch.float64)[:, None] * frequencies[None].repeat_interleave(2, dim=1)
    rows = axis[:, None].expand(size, size, -1)
    columns = axis[None].expand(size, size, -1)
    angles = torch.cat((rows, columns), dim=2).reshape(size * size, -1)
    return torch.stack((angles.cos(), angles.sin())).float()


class BlockOptions(Protocol):
    """Choices in which DiTs differ: `config.DenoiserVariant`, or anything with its fields."""

    @property
    def positions(self) -> str: ...
    @property
    def rotary(self) -> bool: ...
    @property
    def norm(self) -> str: ...
    @property
    def qk_norm(self) -> str | None: ...
    @property
    def mlp(self) -> str: ...


class DenoiserShape(Protocol):
    """Architecture of a denoiser: `config.DenoiserConfig`, or anything with its fields."""

    @property
    def in_channels(self) -> int: ...
    @property
    def cond_channels(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def patch_size(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def depth(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def mlp_ratio(self) -> float: ...
    @property
    def num_classes(self) -> int: ...
    @property
    def time(self) -> TimeFeatures: ...
    @property
    def variant(self) -> BlockOptions: ...


class TimeEmbedding(nn.Module):
    """Embedding of its inputs: the timestep, the noise level of a condition, and what a flow map is told.

    All (B,) -> (B, width) float32.
    """

    def __init__(self, width: int, inputs: Sequence[TimeInput], time: TimeFeatures) -> None:
        super().__init__()
        self.inputs = inputs
        self.time = time
        self.layers = nn.Sequential(nn.Linear(TIME_FEATURES * len(inputs), width), nn.SiLU(), nn.Linear(width, width))

    def forward(
        self,
        timesteps: Tensor,
        cond_levels: Tensor,
        intervals: Tensor | None = None,
        guidance_scales: Tensor | None = None,
    ) -> Tensor:
        values = {
            "timestep": timesteps,
            "cond_level": cond_levels,
            "interval": intervals,
            "guidance_scale": guidance_scales,
        }
        features = [self.features(value) for name in self.inputs if (value := values[name]) is not None]
        out: Tensor = self.layers(torch.cat(features, dim=1))
        return out

    def features(self, timesteps: Tensor) -> Tensor:
        """Return sinusoidal features of `timesteps` (B,): (B, 256) float32, computed in float64."""
        half = TIME_FEATURES // 2
        exponents = torch.arange(half, dtype=torch.float64, device=timesteps.device)
        frequencies = torch.exp(-math.log(10_000) * (exponents / (half - self.time.downscale_freq_shift)))
        angles = self.time.scale * timesteps.double()[:, None] * frequencies[None]
        return torch.cat((angles.cos(), angles.sin()), dim=1).float()


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Scale and shift tokens (B, N, D) by (B, D)."""
    return x * (1 + scale[:, None]) + shift[:, None]


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Rotate each pair of features of x (B, heads, N, d) by its angle; `rotary` (2, N, d) has cosines and sines."""
    first, second = x[..., ::2], x[..., 1::2]
    return x * rotary[0] + torch.stack((-second, first), dim=-1).flatten(-2) * rotary[1]


def make_norm(kind: str, width: int) -> nn.Module:
    """Return the norm before an attention or MLP; only that of kind `rms` has weights."""
    if kind == "rms":
        return nn.RMSNorm(width, eps=1e-6)
    return nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)


def make_qk_norm(kind: str | None, width: int) -> nn.Module:
    """Return the norm of the queries or keys of one head; both kinds have weights."""
    match kind:
        case "rms":
            return nn.RMSNorm(width, eps=1e-6)
        case "layer":
            return nn.LayerNorm(width)
    return nn.Identity()


class Attention(nn.Module):
    """Multi-head self-attention: (B, N, D) -> (B, N, D)."""

    def __init__(self, width: int, num_heads: int, qk_norm: str | None) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = make_qk_norm(qk_norm, width // num_heads)
        self.k_norm = make_qk_norm(qk_norm, width // num_heads)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, rotary: Tensor | None) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, width // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, N, D / heads)
        q, k = self.q_norm(q), self.k_norm(k)
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        mixed = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return out


class SwiGlu(nn.Module):
    """Gated MLP (Shazeer, arXiv 2002.05202): (B, N, D) -> (B, N, D)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_and_value = nn.Linear(width, 2 * hidden)
        self.out = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.gate_and_value(x).chunk(2, dim=-1)
        out: Tensor = self.out(F.silu(gate) * value)
        return out


def make_mlp(kind: str, width: int, mlp_ratio: float) -> nn.Module:
    """Return the MLP of a block."""
    hidden = round(width * mlp_ratio)
    if kind == "swiglu":
        return SwiGlu(width, hidden)
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))


class Block(nn.Module):
    """Transformer block whose norms and gates depend on the condition (adaLN-Zero)."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float, variant: BlockOptions) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 6 * width)
        self.norm1 = make_norm(variant.norm, width)
        self.attention = Attention(width, num_heads, variant.qk_norm)
        self.norm2 = make_norm(variant.norm, width)
        self.mlp = make_mlp(variant.mlp, width, mlp_ratio)

    def forward(self, x: Tensor, condition: Tensor, rotary: Tensor | None) -> Tensor:
        modulation: Tensor = self.modulation(condition)  # (B, 6 D)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=1)
        attended: Tensor = self.attention(modulate(self.norm1(x), shift1, scale1), rotary)  # (B, N, D)
        x = x + gate1[:, None] * attended
        mixed: Tensor = self.mlp(modulate(self.norm2(x), shift2, scale2))
        return x + gate2[:, None] * mixed


class Denoiser(nn.Module):
    """Predicts the velocity of `x` from its time embedding (`self.time` makes it), class and conditioning latent.

    A flow map predicts the average velocity on the way to another timestep. Label `num_classes` is the null label of
    classifier-free guidance.
    """

    positions: Tensor
    rotary: Tensor | None

    def __init__(self, config: DenoiserShape, *, is_flow_map: bool = False) -> None:
        super().__init__()
        self.config = config
        inputs = time_inputs(has_condition=config.cond_channels > 0, is_flow_map=is_flow_map)
        width, patch, variant = config.width, config.patch_size, config.variant
        side = config.size // patch
        self.patches = nn.Linear((config.in_channels + config.cond_channels) * patch**2, width)
        positions = position_embedding(side, width, columns_first=variant.positions == "columns_first")
        self.register_buffer("positions", positions, persistent=variant.positions == "stored")
        rotary = rotary_embedding(side, width // config.num_heads) if variant.rotary else None
        self.register_buffer("rotary", rotary, persistent=False)
        self.time = TimeEmbedding(width, inputs, config.time)
        self.labels = nn.Embedding(config.num_classes + 1, width)
        self.blocks = nn.ModuleList(
            Block(width, config.num_heads, config.mlp_ratio, variant) for _ in range(config.depth)
        )
        self.norm = make_norm(variant.norm, width)
        self.modulation = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, config.in_channels * patch**2)
        self._initialize()

    @property
    def null_label(self) -> int:
        return self.config.num_classes

    def forward(self, x: Tensor, time_embedding: Tensor, labels: Tensor, cond: Tensor | None = None) -> Tensor:
        """Map x (B, C, h, w), time_embedding (B, D), labels (B,), cond (B, K, h, w; None if K is 0) to (B, C, h, w)."""
        patch, side = self.config.patch_size, self.config.size // self.config.patch_size
        joint = x if cond is None else torch.cat((x, cond), dim=1)
        tokens = F.pixel_unshuffle(joint, patch).flatten(2).transpose(1, 2)  # (B, N, (C + K) p²)
        tokens = self.patches(tokens) + self.positions  # (B, N, D)
        condition = F.silu(time_embedding + self.labels(labels))  # (B, D)
        for block in self.blocks:
            tokens = block(tokens, condition, self.rotary)
        shift, scale = self.modulation(condition).chunk(2, dim=1)
        out = self.out(modulate(self.norm(tokens), shift, scale))  # (B, N, C p²)
        return F.pixel_shuffle(out.transpose(1, 2).unflatten(2, (side, side)), patch).float()

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.labels.weight, std=0.02)
        zeroed = [block.modulation for block in self.blocks] + [self.modulation, self.out]
        for linear in zeroed:
            assert isinstance(linear, nn.Linear)
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

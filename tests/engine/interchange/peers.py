"""Checkpoints as other projects write them, with random weights, none of them zero: zeros would hide mistakes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from safetensors.torch import save_file
from torch import Tensor, nn

NUM_CLASSES = 5
WIDTH, HEADS, DEPTH, SIZE, PATCH, CHANNELS = 64, 4, 3, 8, 2, 4
LABELS = ("ant", "bee", "cat", "dog", "eel")
State = dict[str, Tensor]


def dit_transformer(**changes: Any) -> DiTTransformer2DModel:
    """A small DiT of diffusers; all blocks have the embeddings of the first, as in its published checkpoints."""
    torch.manual_seed(1)
    config: dict[str, Any] = {
        "num_attention_heads": HEADS,
        "attention_head_dim": WIDTH // HEADS,
        "in_channels": CHANNELS,
        "out_channels": 2 * CHANNELS,
        "num_layers": DEPTH,
        "sample_size": SIZE,
        "patch_size": PATCH,
        "num_embeds_ada_norm": NUM_CLASSES,
    }
    transformer = DiTTransformer2DModel(**{**config, **changes}).eval().requires_grad_(False)
    randomize(transformer)
    first = transformer.transformer_blocks[0].norm1.emb.state_dict()
    for block in transformer.transformer_blocks:
        block.norm1.emb.load_state_dict(first)
    return transformer


def small_vae(**changes: Any) -> AutoencoderKL:
    """An autoencoder of 16x16 images and 8x8 latents."""
    torch.manual_seed(2)
    config: dict[str, Any] = {
        "block_out_channels": [8, 8],
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "latent_channels": CHANNELS,
        "norm_num_groups": 4,
        "sample_size": 16,
    }
    return AutoencoderKL(**{**config, **changes}).eval().requires_grad_(False)


def write_pipeline(folder: Path, *, id2label: bool = True, **changes: Any) -> Path:
    """Write a `DiTPipeline` as diffusers does."""
    scheduler = DDIMScheduler(clip_sample=False)
    names = dict(enumerate(LABELS)) if id2label else None
    pipeline = DiTPipeline(dit_transformer(**changes), small_vae(), scheduler)
    if names is not None:
        pipeline.register_to_config(id2label=names)
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def randomize(network: nn.Module) -> None:
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5 / math.sqrt(parameter.shape[-1]) if parameter.ndim > 1 else 0.1)


class TimmDit:
    """The network of DiT, SiT, REPA and LightningDiT from its formulas: our reading of their layout, not their code.

    x + positions; c = mlp(features(t)) + label; in each block x += gate * attention(norm(x) (1 + scale) + shift), then
    the same with the MLP; at the end a linear layer of a modulated norm, patches back to pixels, variance cut off.
    """

    def __init__(self, state: State, num_heads: int, *, rotary_theta: float | None = None) -> None:
        self.state = state
        self.num_heads = num_heads
        self.rotary_theta = rotary_theta

    def __call__(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        weights, patch = self.state, self.state["x_embedder.proj.weight"].shape[-1]
        channels, side = x.shape[1], x.shape[2] // patch
        tokens = F.conv2d(x, weights["x_embedder.proj.weight"], weights["x_embedder.proj.bias"], stride=patch)
        tokens = tokens.flatten(2).mT + weights["pos_embed"]
        frequencies = 10_000.0 ** (-torch.arange(128, dtype=torch.float64) / 128)
        angles = t.double()[:, None] * frequencies
        features = torch.cat((angles.cos(), angles.sin()), dim=1).float()
        hidden = F.silu(self._linear("t_embedder.mlp.0", features))
        condition = self._linear("t_embedder.mlp.2", hidden) + weights["y_embedder.embedding_table.weight"][labels]
        condition = F.silu(condition)
        depth = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
        for block in range(depth):
            tokens = self._block(f"blocks.{block}", tokens, condition)
        shift, scale = self._linear("final_layer.adaLN_modulation.1", condition)[:, None].chunk(2, dim=-1)
        out = self._linear("final_layer.linear", self._norm("final_layer.norm_final", tokens) * (1 + scale) + shift)
        pixels = out.reshape(len(x), side, side, patch, patch, -1).permute(0, 5, 1, 3, 2, 4)
        return pixels.reshape(len(x), -1, side * patch, side * patch)[:, :channels]

    def _block(self, name: str, x: Tensor, condition: Tensor) -> Tensor:
        modulation = self._linear(f"{name}.adaLN_modulation.1", condition)[:, None].chunk(6, dim=-1)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation
        x = x + gate1 * self._attention(f"{name}.attn", self._norm(f"{name}.norm1", x) * (1 + scale1) + shift1)
        return x + gate2 * self._mlp(f"{name}.mlp", self._norm(f"{name}.norm2", x) * (1 + scale2) + shift2)

    def _attention(self, name: str, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        head = width // self.num_heads
        q, k, v = self._linear(f"{name}.qkv", x).reshape(batch, tokens, 3, self.num_heads, head).permute(2, 0, 3, 1, 4)
        if f"{name}.q_norm.weight" in self.state:
            q, k = self._qk_norm(f"{name}.q_norm", q), self._qk_norm(f"{name}.k_norm", k)
        if self.rotary_theta is not None:
            q, k = self._rotated(q), self._rotated(k)
        attention = (q @ k.mT / math.sqrt(head)).softmax(dim=-1)
        return self._linear(f"{name}.proj", (attention @ v).transpose(1, 2).reshape(batch, tokens, width))

    def _mlp(self, name: str, x: Tensor) -> Tensor:
        if f"{name}.w12.weight" in self.state:
            gate, value = self._linear(f"{name}.w12", x).chunk(2, dim=-1)
            return self._linear(f"{name}.w3", F.silu(gate) * value)
        return self._linear(f"{name}.fc2", F.gelu(self._linear(f"{name}.fc1", x), approximate="tanh"))

    def _norm(self, name: str, x: Tensor) -> Tensor:
        if f"{name}.weight" in self.state:
            return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * self.state[f"{name}.weight"]
        return F.layer_norm(x, x.shape[-1:], eps=1e-6)

    def _qk_norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.state[f"{name}.weight"], self.state.get(f"{name}.bias")
        if bias is not None:
            return F.layer_norm(x, x.shape[-1:], weight, bias)
        return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weight

    def _rotated(self, x: Tensor) -> Tensor:
        """Multiply pairs of features as complex numbers: the first half by the row's angles, the rest the column's."""
        assert self.rotary_theta is not None
        angles = rotary_angles(math.isqrt(x.shape[-2]), x.shape[-1], self.rotary_theta)
        turned = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2)) * torch.polar(torch.ones(()), angles)
        return torch.view_as_real(turned).flatten(-2)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])


def rotary_angles(side: int, head: int, theta: float = 10_000.0) -> Tensor:
    """Angles of each token and pair: (side², head / 2)."""
    frequencies = theta ** (-torch.arange(0, head // 2, 2) / (head // 2))
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.cat((row.reshape(-1, 1) * frequencies, column.reshape(-1, 1) * frequencies), dim=1)


def timm_state(
    *,
    width: int = WIDTH,
    depth: int = DEPTH,
    num_classes: int = NUM_CLASSES,
    learned_sigma: bool = True,
    qk_norm: bool = False,
    lightning: bool = False,
    projectors: bool = False,
) -> State:
    """Random weights by the names of SiT; with the projectors of REPA or the blocks of LightningDiT."""
    torch.manual_seed(3)
    out_channels = CHANNELS * (2 if learned_sigma else 1)
    hidden = 2 * (2 * width * 4 // 3 // 2) if lightning else 4 * width
    linears = {
        "t_embedder.mlp.0": (width, 256),
        "t_embedder.mlp.2": (width, width),
        "final_layer.linear": (PATCH**2 * out_channels, width),
        "final_layer.adaLN_modulation.1": (2 * width, width),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "x_embedder.proj.weight": (width, CHANNELS, PATCH, PATCH),
        "x_embedder.proj.bias": (width,),
        "pos_embed": (1, (SIZE // PATCH) ** 2, width),
        "y_embedder.embedding_table.weight": (num_classes + 1, width),
    }
    for block in (f"blocks.{index}" for index in range(depth)):
        linears |= {
            f"{block}.attn.qkv": (3 * width, width),
            f"{block}.attn.proj": (width, width),
            f"{block}.adaLN_modulation.1": (6 * width, width),
        }
        if lightning:
            linears |= {f"{block}.mlp.w12": (2 * hidden, width), f"{block}.mlp.w3": (width, hidden)}
            shapes |= {f"{block}.norm{number}.weight": (width,) for number in (1, 2)}
        else:
            linears |= {f"{block}.mlp.fc1": (hidden, width), f"{block}.mlp.fc2": (width, hidden)}
        if qk_norm:
            kinds = ("weight",) if lightning else ("weight", "bias")
            shapes |= {f"{block}.attn.{q}_norm.{kind}": (width // HEADS,) for q in "qk" for kind in kinds}
    if lightning:
        shapes["final_layer.norm_final.weight"] = (width,)
    if projectors:
        linears["projectors.0.0"] = (32, width)
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    state = {
        name: torch.randn(shape) * (0.5 / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.1)
        + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
        for name, shape in shapes.items()
    }
    if lightning:
        angles = rotary_angles(SIZE // PATCH, width // HEADS).repeat_interleave(2, dim=1)
        state |= {"feat_rope.freqs_cos": angles.cos(), "feat_rope.freqs_sin": angles.sin()}
    return state


def write_state(file: Path, state: State) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, file)
    return file

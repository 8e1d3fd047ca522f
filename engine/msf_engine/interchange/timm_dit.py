"""Denoisers with the names of timm's blocks: facebook's DiT, SiT, REPA's SiT and LightningDiT, read as ours.

Their files do not say which of them they are, nor how many heads they have. The layouts are our reading of the
projects' published code; no published file was at hand.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from msf_engine.denoiser import SIZES, rotary_embedding
from msf_engine.denoiser_config import DenoiserConfig, DenoiserVariant, TimeConfig
from msf_engine.errors import CheckpointError
from msf_engine.interchange.checkpoint import Checkpoint
from msf_engine.interchange.diffusers_dit import State, output_rows
from msf_engine.options import Layout
from msf_engine.time_embedding import TIME_FEATURES


def read_denoiser(checkpoint: Checkpoint, layout: Layout, num_heads: int | None = None) -> tuple[DenoiserConfig, State]:
    """Return a denoiser's config in our terms, and its weights by our names. Raises CheckpointError."""
    if layout == "repa":
        checkpoint.drop("projectors.")  # they align features during training
    config, out_channels = _infer_config(checkpoint, layout, num_heads)
    state = _read_ends(checkpoint, config, out_channels)
    for block in range(config.depth):
        state |= _read_block(checkpoint, block, config)
    checkpoint.finish()
    return config, state


def _infer_config(checkpoint: Checkpoint, layout: Layout, num_heads: int | None) -> tuple[DenoiserConfig, int]:
    """Infer the architecture from the shapes of tensors; the number of output channels includes a variance."""
    width, channels, patch, _ = checkpoint.shape("x_embedder.proj.weight", 4)
    _, num_tokens, _ = checkpoint.shape("pos_embed", 3)
    num_labels, _ = checkpoint.shape("y_embedder.embedding_table.weight", 2)
    num_rows, _ = checkpoint.shape("final_layer.linear.weight", 2)
    side, out_channels = math.isqrt(num_tokens), num_rows // patch**2
    if side**2 != num_tokens:
        raise CheckpointError(f"{checkpoint.file}: tensor pos_embed has {num_tokens} positions; wanted: a square")
    allowed = (channels,) if layout == "repa" else (channels, 2 * channels)
    if out_channels not in allowed:
        raise CheckpointError(
            f"{checkpoint.file}: tensor final_layer.linear.weight is for {out_channels} channels; "
            f"wanted by layout {layout}: {' or '.join(map(str, allowed))}"
        )
    is_gated = "blocks.0.mlp.w12.weight" in checkpoint
    hidden = (
        checkpoint.shape("blocks.0.mlp.w12.weight", 2)[0] // 2
        if is_gated
        else checkpoint.shape("blocks.0.mlp.fc1.weight", 2)[0]
    )
    norm: Literal["layer", "rms"] = "rms" if "blocks.0.norm1.weight" in checkpoint else "layer"
    qk_norm: Literal["layer", "rms"] | None = None
    if "blocks.0.attn.q_norm.weight" in checkpoint:
        qk_norm = "layer" if "blocks.0.attn.q_norm.bias" in checkpoint else "rms"
        num_heads = width // checkpoint.shape("blocks.0.attn.q_norm.weight", 1)[0]
    variant = DenoiserVariant(
        positions="stored",
        rotary="feat_rope.freqs_cos" in checkpoint,
        norm=norm,
        qk_norm=qk_norm,
        mlp="swiglu" if is_gated else "gelu",
    )
    if layout != "lightningdit" and variant != DenoiserVariant(positions="stored", qk_norm=qk_norm):
        raise CheckpointError(
            f"{checkpoint.file}: its blocks have RMS norms, gated MLPs or rotations; wanted: --layout lightningdit"
        )
    config = DenoiserConfig(
        in_channels=channels,
        size=side * patch,
        patch_size=patch,
        width=width,
        depth=checkpoint.count("blocks."),
        num_heads=num_heads or _num_heads(checkpoint, width),
        mlp_ratio=hidden / width,
        num_classes=num_labels - 1,
        time=TimeConfig(scale=1),
        variant=variant,
    )
    return config, out_channels


def _num_heads(checkpoint: Checkpoint, width: int) -> int:
    """Return the number of heads that DiT's published sizes have at this width."""
    heads = {size_width: size_heads for size_width, _, size_heads in SIZES.values()}
    if width not in heads:
        raise CheckpointError(
            f"{checkpoint.file}: width {width} is none of {', '.join(map(str, heads))}; wanted: --num-heads"
        )
    return heads[width]


def _read_ends(checkpoint: Checkpoint, config: DenoiserConfig, out_channels: int) -> State:
    width, patch, channels, side = config.width, config.patch_size, config.in_channels, config.size // config.patch_size
    num_rows = patch**2 * out_channels
    state = {
        "patches.weight": checkpoint.take("x_embedder.proj.weight", width, channels, patch, patch).flatten(1),
        "patches.bias": checkpoint.take("x_embedder.proj.bias", width),
        "positions": checkpoint.take("pos_embed", 1, side**2, width)[0],
        "time.layers.0.weight": checkpoint.take("t_embedder.mlp.0.weight", width, TIME_FEATURES),
        "time.layers.0.bias": checkpoint.take("t_embedder.mlp.0.bias", width),
        "time.layers.2.weight": checkpoint.take("t_embedder.mlp.2.weight", width, width),
        "time.layers.2.bias": checkpoint.take("t_embedder.mlp.2.bias", width),
        "labels.weight": checkpoint.take("y_embedder.embedding_table.weight", config.num_classes + 1, width),
        "modulation.weight": checkpoint.take("final_layer.adaLN_modulation.1.weight", 2 * width, width),
        "modulation.bias": checkpoint.take("final_layer.adaLN_modulation.1.bias", 2 * width),
    }
    out = {
        "weight": checkpoint.take("final_layer.linear.weight", num_rows, width),
        "bias": checkpoint.take("final_layer.linear.bias", num_rows),
    }
    state |= {f"out.{name}": output_rows(tensor, patch, channels, out_channels) for name, tensor in out.items()}
    if config.variant.norm == "rms":
        state["norm.weight"] = checkpoint.take("final_layer.norm_final.weight", width)
    if config.variant.rotary:
        _check_rotary(checkpoint, side, width // config.num_heads)
    return state


def _check_rotary(checkpoint: Checkpoint, side: int, head_width: int) -> None:
    """Take the stored table of angles, which must be the one that the denoiser computes."""
    for name, expected in zip(("freqs_cos", "freqs_sin"), rotary_embedding(side, head_width), strict=True):
        table: Tensor = checkpoint.take(f"feat_rope.{name}", side**2, head_width)
        if not torch.allclose(table.float(), expected, atol=1e-2):  # it may be in bfloat16
            raise CheckpointError(
                f"{checkpoint.file}: tensor feat_rope.{name} has other angles; wanted: 10000^(-2i / {head_width // 2})"
            )


def _read_block(checkpoint: Checkpoint, block: int, config: DenoiserConfig) -> State:
    width, variant, hidden = config.width, config.variant, round(config.width * config.mlp_ratio)
    layers: dict[str, tuple[str, tuple[int, int]]] = {  # ours by theirs, with rows and columns
        "adaLN_modulation.1": ("modulation", (6 * width, width)),
        "attn.qkv": ("attention.qkv", (3 * width, width)),
        "attn.proj": ("attention.out", (width, width)),
    }
    if variant.mlp == "swiglu":
        layers |= {
            "mlp.w12": ("mlp.gate_and_value", (2 * hidden, width)),
            "mlp.w3": ("mlp.out", (width, hidden)),
        }
    else:
        layers |= {"mlp.fc1": ("mlp.0", (hidden, width)), "mlp.fc2": ("mlp.2", (width, hidden))}
    theirs, ours, state = f"blocks.{block}", f"blocks.{block}", State()
    for name, (our_name, shape) in layers.items():
        state[f"{ours}.{our_name}.weight"] = checkpoint.take(f"{theirs}.{name}.weight", *shape)
        state[f"{ours}.{our_name}.bias"] = checkpoint.take(f"{theirs}.{name}.bias", shape[0])
    norms: dict[str, tuple[str, ...]] = {f"norm{n}": ("weight",) for n in (1, 2) if variant.norm == "rms"}
    if variant.qk_norm is not None:
        names = ("weight", "bias") if variant.qk_norm == "layer" else ("weight",)
        norms |= {"attn.q_norm": names, "attn.k_norm": names}
    for name, kinds in norms.items():
        size = width // config.num_heads if name.startswith("attn") else width
        for kind in kinds:
            our_name = name.replace("attn.", "attention.")
            state[f"{ours}.{our_name}.{kind}"] = checkpoint.take(f"{theirs}.{name}.{kind}", size)
    return state

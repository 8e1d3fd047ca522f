"""The denoiser and noise schedule of diffusers' `DiTPipeline`: its layout, read as ours.

diffusers keeps a copy of the time and label embeddings in every block. Its positions have the column first, and the
features of its times have other frequencies. The second half of `proj_out_2` predicts a variance, which no solver here
uses.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from msf_engine.denoiser_config import DenoiserConfig, DenoiserVariant, TimeConfig
from msf_engine.errors import CheckpointError
from msf_engine.interchange.checkpoint import WEIGHTS_NAME, Checkpoint, read_checkpoint, read_config
from msf_engine.time_embedding import TIME_FEATURES

PositiveInt = Annotated[int, Field(gt=0)]
State = dict[str, Tensor]


class TransformerConfig(BaseModel):
    """The fields of `DiTTransformer2DModel` that decide what it computes, with the values that are supported."""

    class_name: Literal["DiTTransformer2DModel", "Transformer2DModel"] = Field(alias="_class_name")
    num_attention_heads: PositiveInt = 16
    attention_head_dim: PositiveInt = 72
    in_channels: PositiveInt = 4
    out_channels: PositiveInt | None = None
    num_layers: PositiveInt = 28
    attention_bias: Literal[True] = True
    sample_size: PositiveInt = 32
    patch_size: PositiveInt = 2
    activation_fn: Literal["gelu-approximate"] = "gelu-approximate"
    num_embeds_ada_norm: PositiveInt = 1000
    norm_type: Literal["ada_norm_zero"] = "ada_norm_zero"
    norm_elementwise_affine: Literal[False] = False


class SchedulerConfig(BaseModel):
    """The fields of `DDIMScheduler` that decide what it computes, with the values that are supported."""

    class_name: Literal["DDIMScheduler"] = Field(alias="_class_name")
    num_train_timesteps: PositiveInt = 1000
    beta_schedule: Literal["linear", "scaled_linear"] = "linear"
    beta_start: float = 0.0001
    beta_end: float = 0.02
    trained_betas: None = None
    prediction_type: Literal["epsilon"] = "epsilon"
    clip_sample: Literal[False] = Field(True, validate_default=True)
    thresholding: Literal[False] = False
    rescale_betas_zero_snr: Literal[False] = False
    timestep_spacing: Literal["leading", "trailing", "linspace"] = "leading"
    steps_offset: int = 0
    set_alpha_to_one: bool = True

    @property
    def process(self) -> dict[str, Any]:
        """Fields of the process in our config."""
        unused = {"class_name", "trained_betas", "clip_sample", "thresholding", "rescale_betas_zero_snr"}
        fields = self.model_dump(exclude={*unused, "prediction_type"})
        return {"kind": "variance_preserving", "prediction": self.prediction_type, **fields}


def read_transformer(folder: Path) -> tuple[DenoiserConfig, State]:
    """Read a `DiTTransformer2DModel`: its config in our terms, and its weights by our names. Raises CheckpointError."""
    config_file = folder / "config.json"
    config = read_config(TransformerConfig, config_file)
    width = config.num_attention_heads * config.attention_head_dim
    if config.out_channels not in (None, config.in_channels, 2 * config.in_channels):
        raise CheckpointError(
            f"{config_file}: out_channels is {config.out_channels}; "
            f"wanted: {config.in_channels}, or {2 * config.in_channels} with a learned variance"
        )
    denoiser = DenoiserConfig(
        in_channels=config.in_channels,
        size=config.sample_size,
        patch_size=config.patch_size,
        width=width,
        depth=config.num_layers,
        num_heads=config.num_attention_heads,
        num_classes=config.num_embeds_ada_norm,
        time=TimeConfig(scale=1, downscale_freq_shift=1),
        variant=DenoiserVariant(positions="columns_first"),
    )
    checkpoint = read_checkpoint(folder / WEIGHTS_NAME)
    state = _read_ends(checkpoint, denoiser, config.out_channels or config.in_channels)
    for block in range(denoiser.depth):
        state |= _read_block(checkpoint, block, denoiser)
        _read_embeddings(checkpoint, block, denoiser, state)
    checkpoint.finish()
    return denoiser, state


def output_rows(tensor: Tensor, patch: int, channels: int, out_channels: int) -> Tensor:
    """Return rows (patch, patch, out_channels) of an output layer as (channels, patch, patch), without the variance."""
    rows = tensor.reshape(patch, patch, out_channels, *tensor.shape[1:])[:, :, :channels]
    return rows.movedim(2, 0).flatten(0, 2).contiguous()


def _read_ends(checkpoint: Checkpoint, config: DenoiserConfig, out_channels: int) -> State:
    width, patch, channels = config.width, config.patch_size, config.in_channels
    num_rows = patch**2 * out_channels
    out = {
        "weight": checkpoint.take("proj_out_2.weight", num_rows, width),
        "bias": checkpoint.take("proj_out_2.bias", num_rows),
    }
    return {
        "patches.weight": checkpoint.take("pos_embed.proj.weight", width, channels, patch, patch).flatten(1),
        "patches.bias": checkpoint.take("pos_embed.proj.bias", width),
        "modulation.weight": checkpoint.take("proj_out_1.weight", 2 * width, width),
        "modulation.bias": checkpoint.take("proj_out_1.bias", 2 * width),
        **{f"out.{name}": output_rows(tensor, patch, channels, out_channels) for name, tensor in out.items()},
    }


def _read_block(checkpoint: Checkpoint, block: int, config: DenoiserConfig) -> State:
    width, hidden = config.width, 4 * config.width
    layers = {  # rows and columns of each linear layer
        "norm1.linear": (6 * width, width),
        "attn1.to_q": (width, width),
        "attn1.to_k": (width, width),
        "attn1.to_v": (width, width),
        "attn1.to_out.0": (width, width),
        "ff.net.0.proj": (hidden, width),
        "ff.net.2": (width, hidden),
    }
    theirs, ours = f"transformer_blocks.{block}", f"blocks.{block}"
    state: State = {}
    for kind in ("weight", "bias"):
        modulation, q, k, v, out, first, second = (
            checkpoint.take(f"{theirs}.{name}.{kind}", *(shape if kind == "weight" else shape[:1]))
            for name, shape in layers.items()
        )
        state |= {
            f"{ours}.modulation.{kind}": modulation,
            f"{ours}.attention.qkv.{kind}": torch.cat((q, k, v)),
            f"{ours}.attention.out.{kind}": out,
            f"{ours}.mlp.0.{kind}": first,
            f"{ours}.mlp.2.{kind}": second,
        }
    return state


def _read_embeddings(checkpoint: Checkpoint, block: int, config: DenoiserConfig, state: State) -> None:
    """Take a block's copy of the embeddings, which must be equal to those in `state` if there are any."""
    width = config.width
    embeddings: dict[str, tuple[str, tuple[int, ...]]] = {
        "timestep_embedder.linear_1.weight": ("time.layers.0.weight", (width, TIME_FEATURES)),
        "timestep_embedder.linear_1.bias": ("time.layers.0.bias", (width,)),
        "timestep_embedder.linear_2.weight": ("time.layers.2.weight", (width, width)),
        "timestep_embedder.linear_2.bias": ("time.layers.2.bias", (width,)),
        "class_embedder.embedding_table.weight": ("labels.weight", (config.num_classes + 1, width)),
    }
    for name, (ours, shape) in embeddings.items():
        theirs = f"transformer_blocks.{block}.norm1.emb.{name}"
        tensor = checkpoint.take(theirs, *shape)
        if not torch.equal(state.setdefault(ours, tensor), tensor):
            raise CheckpointError(
                f"{checkpoint.file}: tensor {theirs} differs from that of block 0; wanted: equal copies in all blocks"
            )

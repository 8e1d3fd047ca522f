"""The card (`README.md`) of an imported model."""

from __future__ import annotations

from collections.abc import Mapping

from msf_engine.config import ModelConfig

_CARD = """# {name}

Imported by `msf import` from {kind}; {size}x{size} images, {classes} classes.

| | |
|---|---|
| denoiser | width {width}, depth {depth}, {heads} heads, patches of {patch} on a {latent}x{latent} latent |
| process | {process}, solver `{solver}` |
| defaults | {steps} steps, guidance scale {scale} |

**Licence.** Weights keep the licence of their source, which an import does not know. Those of DiT and SiT are published
under CC-BY-NC 4.0: to be served for non-commercial use, not to be shipped in a product.

**Not imported.** A learned variance and the noise that ancestral samplers add, if the source has them: sampling is
deterministic for a seed.

| source | SHA-256 |
|---|---|
{files}
"""


def model_card(name: str, kind: str, config: ModelConfig, digests: Mapping[str, str]) -> str:
    """Return the card's text; `digests` are the SHA-256 of the source's files."""
    stage, sampling = config.stages[0], config.sampling
    denoiser = stage.denoiser
    return _CARD.format(
        name=name,
        kind=kind,
        size=config.image.size,
        classes=config.num_classes,
        width=denoiser.width,
        depth=denoiser.depth,
        heads=denoiser.num_heads,
        patch=denoiser.patch_size,
        latent=denoiser.size,
        process=config.process.kind.replace("_", "-"),
        solver=sampling.solver,
        steps=config.default_num_steps,
        scale=sampling.default_guidance_scale,
        files="\n".join(f"| `{file}` | `{digest}` |" for file, digest in digests.items()),
    )

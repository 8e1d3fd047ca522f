"""Revisions of the code that decides an image's bytes. They enter the fingerprints; file and module names do not.

Raise one in the change that makes its outputs differ, be it in the last bit: stored fingerprints then promise nothing
any more. Code that is only moved or renamed keeps its revision. `tests/engine/test_revisions.py` compares both with
recorded outputs of a fixed model.
"""

from __future__ import annotations

from importlib.metadata import version

NETWORK_REVISION = 3
"""Everything that plans are compiled from: denoiser, autoencoder, low precision, export."""

NUMERICS_REVISION = 2
"""Everything that the host computes: noise, time embedding, schedules, guidance, updates, padding."""


def network_fingerprint() -> str:
    """Return what compiled networks depend on besides weights and backend; diffusers defines the autoencoder."""
    return f"networks {NETWORK_REVISION} diffusers {version('diffusers')}"

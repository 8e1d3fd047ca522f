"""Names and defaults of the engine's options. Imports no torch, so that settings can be read without it."""

from __future__ import annotations

from typing import Literal, get_args

Precision = Literal["fp32", "bf16", "fp16"]
BackendName = Literal["eager", "inductor", "openvino", "tensorrt", "noop"]
Layout = Literal["dit", "sit", "repa", "lightningdit"]
"""Project that published a file of weights."""
ExportFormat = Literal["diffusers", "onnx"]
BACKENDS: tuple[BackendName, ...] = get_args(BackendName)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
EXPORT_FORMATS: tuple[ExportFormat, ...] = get_args(ExportFormat)

DEFAULT_BUCKETS: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
DEFAULT_PLAN_CACHE_BYTES = 20 * 2**30

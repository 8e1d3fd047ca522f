"""Script for a test: converts every plan by Torch-TensorRT without a GPU and prints the engines' sizes.

Torch-TensorRT queries CUDA about the device on import, and TensorRT-RTX can build engines without one but not load
them. Here CUDA's responses are simulated, and engines are returned without being loaded. Nothing runs.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch


class _Device:
    name, major, minor, total_memory, multi_processor_count = "none", 9, 0, 2**36, 132


class _Unloaded:
    """An engine in place of a loaded one."""

    streamable_device_memory_size = 0
    device_memory_size_v2 = 0

    def __init__(self, engine: Any) -> None:
        self._engine = bytes(engine)

    def serialize(self) -> bytes:
        return self._engine


class _Runtime:
    def __init__(self, logger: object) -> None: ...

    def deserialize_cuda_engine(self, engine: Any) -> _Unloaded:
        return _Unloaded(engine)


def simulate_gpu() -> None:
    cuda: Any = torch.cuda
    cuda.get_device_capability = lambda *_: (9, 0)
    cuda.current_device = lambda: 0
    cuda.mem_get_info = lambda *_: (2**36, 2**36)
    cuda.get_device_properties = lambda *_: _Device()
    inside: Any = torch._C
    inside._CudaDeviceProperties = _Device
    exists, path = os.path.isfile, os.path
    setattr(path, "isfile", lambda file: "libtorchtrt" not in str(file) and exists(file))  # noqa: B010


def convert_all() -> dict[str, int]:
    import torch_tensorrt.dynamo.conversion._TRTInterpreter as interpreter

    from msf_engine.backends.tensorrt import TensorRtBackend
    from msf_scheduler.stage import TWO_STAGES
    from tests.engine.support import network_of, spec_of
    from tests.models import tiny_model

    interpreter.trt.Runtime = _Runtime
    model = tiny_model()
    backend = TensorRtBackend("bf16", 1)
    backend.route = "torch-tensorrt"
    sizes: dict[str, int] = {}
    for stage in TWO_STAGES:
        with TemporaryDirectory() as folder:
            backend.compile(spec_of(model, stage, 1, 2), network_of(model, stage), Path(folder))
            sizes |= {f"{stage} {file.name}": file.stat().st_size for file in Path(folder).iterdir()}
    return sizes


if __name__ == "__main__":
    simulate_gpu()
    json.dump(convert_all(), sys.stdout)

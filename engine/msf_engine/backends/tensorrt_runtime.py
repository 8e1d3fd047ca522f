"""Runs TensorRT's engines on a GPU, on the current stream, so that a CUDA graph can capture them. None has run yet."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from msf_engine.errors import PlanError
from msf_engine.export import input_names
from msf_engine.plan import PlanSpec


class EngineNetwork:
    """A stage's network, called with tensors of one of the buckets' rows. On one stream, one call at a time.

    The output is overwritten by the next call on this stream at the same bucket.
    """

    def __init__(self, trt: ModuleType, trt_logger: Any, spec: PlanSpec) -> None:
        self._trt = trt
        self._spec = spec
        self._runtime = trt.Runtime(trt_logger)
        self._engines: dict[int, tuple[Any, int]] = {}  # and profile, by bucket
        # Models with the same weights share a plan, and each has a stream of its own.
        self._executions: dict[tuple[int, int], _Execution] = {}

    def add(self, file: Path, buckets: tuple[int, ...]) -> None:
        """Load an engine that has a profile for each of these buckets, in this order.

        Raises PlanError when it is for another device or version, or when GPU memory is full.
        """
        engine = self._runtime.deserialize_cuda_engine(file.read_bytes())
        if engine is None:
            raise PlanError(f"TensorRT cannot load plan {self._spec}: it was built for another device or version")
        self._engines |= {bucket: (engine, profile) for profile, bucket in enumerate(buckets)}

    def __call__(self, *inputs: Tensor) -> Tensor:
        bucket = len(inputs[0])
        key = torch.cuda.current_stream().cuda_stream, bucket
        if key not in self._executions:
            self._executions[key] = _Execution(self._trt, *self._engines[bucket], self._spec, bucket)
        return self._executions[key](*inputs)


class _Execution:
    """One bucket of an engine, with inputs and output at fixed addresses."""

    def __init__(self, trt: ModuleType, engine: Any, profile: int, spec: PlanSpec, bucket: int) -> None:
        stream = torch.cuda.current_stream()
        self._context = _create_context(trt, engine)
        if self._context is None or not self._context.set_optimization_profile_async(profile, stream.cuda_stream):
            raise PlanError(f"TensorRT has no memory for plan {spec} at bucket {bucket}; its log has the reason")
        stream.synchronize()
        dtypes = {trt.float32: torch.float32, trt.int64: torch.int64, trt.int32: torch.int32}
        names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
        shapes = {name: (bucket, *shape) for name, (shape, _) in zip(input_names(spec), spec.inputs, strict=True)}
        for name in names:
            if name in shapes:
                self._context.set_input_shape(name, shapes[name])
        tensors = {}
        for name in names:
            shape, dtype = tuple(self._context.get_tensor_shape(name)), dtypes[engine.get_tensor_dtype(name)]
            tensors[name] = torch.empty(shape, dtype=dtype, device="cuda")
            self._context.set_tensor_address(name, tensors[name].data_ptr())
        self._inputs = [tensors.get(name) for name in shapes]  # TensorRT removes those that the network does not use
        (self._output,) = (tensor for name, tensor in tensors.items() if name not in shapes)

    def __call__(self, *inputs: Tensor) -> Tensor:
        for buffer, tensor in zip(self._inputs, inputs, strict=True):
            if buffer is not None:
                buffer.copy_(tensor)
        if not self._context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise PlanError("TensorRT failed to run a plan; its log has the reason")
        return self._output.to(torch.float32)


def _create_context(trt: ModuleType, engine: Any) -> Any:
    """Create a context with the memory of one bucket; TensorRT-RTX makes all its kernels now, not while it serves."""
    memory = trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
    if not hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
        return engine.create_execution_context(memory)
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(memory)
    config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    return engine.create_execution_context(config)

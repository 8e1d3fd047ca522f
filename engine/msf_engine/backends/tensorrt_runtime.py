"""Runs TensorRT's engines on a GPU: a CUDA graph for each bucket, no host synchronization inside a step."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from msf_engine.cuda_plan import CudaPlan
from msf_engine.errors import PlanError
from msf_engine.export import input_names
from msf_engine.plan import PlanSpec
from msf_scheduler.stage import Stage


class EnginePlan:
    """A plan of one engine, whose buckets share the weights. Not thread-safe."""

    def __init__(self, trt: ModuleType, trt_logger: Any, spec: PlanSpec, artefact: bytes) -> None:
        """Deserialize an engine. Raises PlanError for one of another device or version, or when GPU memory is full."""
        self._runtime = trt.Runtime(trt_logger)
        self._engine = self._runtime.deserialize_cuda_engine(artefact)
        if self._engine is None:
            raise PlanError(f"TensorRT cannot load plan {spec}: it was built for another device or version")
        pool = torch.cuda.graph_pool_handle()
        self._buckets = {
            bucket: CudaPlan(_Execution(trt, self._engine, spec, bucket, profile), spec.example(bucket), pool)
            for profile, bucket in enumerate(spec.buckets)
        }

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self._buckets[inputs[0].shape[0]](*inputs)

    def device_ms(self, *inputs: Tensor) -> float:
        """Return the milliseconds of one run on the device, without the copies from and to the host."""
        return self._buckets[inputs[0].shape[0]].device_ms(*inputs)


class _Execution:
    """One bucket of an engine: computes on the current stream, from tensors on the device to buffers of its own."""

    def __init__(self, trt: ModuleType, engine: Any, spec: PlanSpec, bucket: int, profile: int) -> None:
        stream = torch.cuda.current_stream()
        self._context = _create_context(trt, engine)
        if self._context is None or not self._context.set_optimization_profile_async(profile, stream.cuda_stream):
            raise PlanError(f"TensorRT has no memory for plan {spec} at bucket {bucket}; its log has the reason")
        stream.synchronize()
        dtypes = {trt.float32: torch.float32, trt.int64: torch.int64, trt.int32: torch.int32, trt.uint8: torch.uint8}
        names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
        self._dtypes = {name: dtypes[engine.get_tensor_dtype(name)] for name in names}
        self._input_names = input_names(spec.stage)
        for name, example in zip(self._input_names, spec.example(bucket), strict=True):
            if name in self._dtypes:  # TensorRT removes inputs that the network does not use
                self._context.set_input_shape(name, tuple(example.shape))
        self._output_dtype = torch.uint8 if spec.stage is Stage.DECODE else torch.float32
        outputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT]
        self._outputs = {name: self._allocate(name) for name in outputs}

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        tensors = {
            name: tensor.to(self._dtypes[name])
            for name, tensor in zip(self._input_names, inputs, strict=True)
            if name in self._dtypes
        }
        for name, tensor in (tensors | self._outputs).items():
            # An input without elements still needs an address.
            self._context.set_tensor_address(name, tensor.data_ptr() or next(iter(self._outputs.values())).data_ptr())
        if not self._context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise PlanError("TensorRT failed to run a plan; its log has the reason")
        return tuple(output.to(self._output_dtype) for output in self._outputs.values())

    def _allocate(self, name: str) -> Tensor:
        return torch.empty(tuple(self._context.get_tensor_shape(name)), dtype=self._dtypes[name], device="cuda")


def _create_context(trt: ModuleType, engine: Any) -> Any:
    """Create a context with the memory of one bucket; TensorRT-RTX makes all its kernels now, not while it serves."""
    memory = trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
    if not hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
        return engine.create_execution_context(memory)
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(memory)
    config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    return engine.create_execution_context(config)

"""Runs TensorRT's engines on a GPU: a CUDA graph for each bucket, no host synchronisation inside a step."""

from __future__ import annotations

import logging
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from msf_serve.engine.errors import PlanError
from msf_serve.engine.export import input_names
from msf_serve.engine.plans import PlanSpec
from msf_serve.engine.stage import Stage

logger = logging.getLogger(__name__)

WARM_UP_RUNS = 3


class EnginePlan:
    """A plan of one engine; its buckets share the weights and the stream. Not thread-safe."""

    def __init__(self, trt: ModuleType, trt_logger: Any, spec: PlanSpec, artefact: bytes) -> None:
        """Raises PlanError for an engine of another device or version."""
        self._runtime = trt.Runtime(trt_logger)
        self._engine = self._runtime.deserialize_cuda_engine(artefact)
        if self._engine is None:
            raise PlanError(f"TensorRT cannot load plan {spec}: it was built for another device or version")
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._buckets = {
            bucket: _Bucket(trt, self._engine, stream, spec, bucket, profile)
            for profile, bucket in enumerate(spec.buckets)
        }

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self._buckets[inputs[0].shape[0]].run(inputs)


class _Bucket:
    """Buffers at fixed addresses on both sides, and the graph that computes between those on the device."""

    def __init__(
        self, trt: ModuleType, engine: Any, stream: torch.cuda.Stream, spec: PlanSpec, bucket: int, profile: int
    ):
        self._stream = stream
        self._context = _context(trt, engine)
        self._context.set_optimization_profile_async(profile, stream.cuda_stream)
        example = dict(zip(input_names(spec.stage), spec.example(bucket), strict=True))
        self._host_in = {name: tensor.pin_memory() for name, tensor in example.items() if tensor.numel()}
        self._device_in = {name: tensor.cuda() for name, tensor in self._host_in.items()}
        self._nothing = torch.zeros(1, device="cuda")  # an input without elements still wants an address
        names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
        for name, tensor in example.items():
            if name in names:  # what is not used may have been removed
                self._context.set_input_shape(name, tuple(tensor.shape))
                self._context.set_tensor_address(name, self._device_in.get(name, self._nothing).data_ptr())
        outputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT]
        dtypes = {trt.float32: torch.float32, trt.uint8: torch.uint8}
        self._device_out = [
            torch.empty(
                tuple(self._context.get_tensor_shape(name)), dtype=dtypes[engine.get_tensor_dtype(name)], device="cuda"
            )
            for name in outputs
        ]
        for name, tensor in zip(outputs, self._device_out, strict=True):
            self._context.set_tensor_address(name, tensor.data_ptr())
        kind = torch.uint8 if spec.stage is Stage.DECODE else torch.float32
        self._host_out = [torch.empty(tensor.shape, dtype=kind, pin_memory=True) for tensor in self._device_out]
        self._graph = self._capture(spec)

    def run(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        with torch.cuda.stream(self._stream):
            for host, tensor in zip(self._host_in.items(), _with_elements(inputs), strict=True):
                name, pinned = host
                pinned.copy_(tensor)
                self._device_in[name].copy_(pinned, non_blocking=True)
            self._execute() if self._graph is None else self._graph.replay()
            for pinned, tensor in zip(self._host_out, self._device_out, strict=True):
                pinned.copy_(tensor.to(pinned.dtype), non_blocking=True)
        self._stream.synchronize()
        return tuple(pinned.clone() for pinned in self._host_out)

    def _execute(self) -> None:
        if not self._context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise PlanError("TensorRT failed to run a plan; its log says why")

    def _capture(self, spec: PlanSpec) -> torch.cuda.CUDAGraph | None:
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UP_RUNS):
                self._execute()
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self._stream):
                self._execute()
        except (RuntimeError, PlanError) as error:
            logger.warning("plan %s runs without a CUDA graph: %s", spec, error)
            return None
        return graph


def _context(trt: ModuleType, engine: Any) -> Any:
    """TensorRT-RTX would build and swap kernels for a shape while it serves, unless told to do so at once."""
    if not hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
        return engine.create_execution_context()
    config = engine.create_runtime_config()
    config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    return engine.create_execution_context(config)


def _with_elements(inputs: tuple[Tensor, ...]) -> list[Tensor]:
    return [tensor for tensor in inputs if tensor.numel()]

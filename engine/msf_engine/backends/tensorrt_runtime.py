"""Runs TensorRT's engines on a GPU: a CUDA graph for each bucket, no host synchronisation inside a step."""

from __future__ import annotations

import logging
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from msf_engine.cuda_plan import elapsed_ms
from msf_engine.errors import PlanError
from msf_engine.export import input_names
from msf_engine.plan import PlanSpec
from msf_scheduler.stage import Stage

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

    def device_ms(self, *inputs: Tensor) -> float:
        """Milliseconds of one run on the device, without the copies from and to the host."""
        return self._buckets[inputs[0].shape[0]].device_ms(inputs)


class _Bucket:
    """Buffers at fixed addresses on both sides, and the graph that computes between those on the device."""

    def __init__(
        self, trt: ModuleType, engine: Any, stream: torch.cuda.Stream, spec: PlanSpec, bucket: int, profile: int
    ):
        self._stream = stream
        self._context = _context(trt, engine)
        if self._context is None or not self._context.set_optimization_profile_async(profile, stream.cuda_stream):
            raise PlanError(f"TensorRT has no room for plan {spec} at bucket {bucket}; its log says why")
        dtypes = {trt.float32: torch.float32, trt.int64: torch.int64, trt.int32: torch.int32, trt.uint8: torch.uint8}
        self._dtypes = {name: dtypes[engine.get_tensor_dtype(name)] for name in _names(engine)}
        self._nothing = torch.zeros(1, device="cuda")  # an input without elements still wants an address
        examples = zip(input_names(spec.stage), spec.example(bucket), strict=True)
        self._inputs = [
            (place, *self._input(name, example))
            for place, (name, example) in enumerate(examples)
            if name in self._dtypes  # what is not used may have been removed
        ]
        kind = torch.uint8 if spec.stage is Stage.DECODE else torch.float32
        outputs = [name for name in self._dtypes if engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT]
        self._outputs = [self._output(name, kind) for name in outputs]
        self._graph = self._capture(spec)

    def run(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        with torch.cuda.stream(self._stream):
            for place, pinned, on_device in self._inputs:
                pinned.copy_(inputs[place])
                on_device.copy_(pinned, non_blocking=True)
            self._compute()
            for pinned, on_device in self._outputs:
                pinned.copy_(on_device.to(pinned.dtype), non_blocking=True)
        self._stream.synchronize()
        return tuple(pinned.clone() for pinned, _ in self._outputs)

    def device_ms(self, inputs: tuple[Tensor, ...]) -> float:
        self.run(inputs)
        with torch.cuda.stream(self._stream):
            return elapsed_ms(self._compute)

    def _compute(self) -> None:
        if self._graph is None:
            self._execute()
        else:
            self._graph.replay()

    def _input(self, name: str, example: Tensor) -> tuple[Tensor, Tensor]:
        """The pinned buffer on the host and that on the device."""
        pinned = example.to(self._dtypes[name]).pin_memory()
        on_device = pinned.cuda()
        self._context.set_input_shape(name, tuple(example.shape))
        self._context.set_tensor_address(name, (on_device if on_device.numel() else self._nothing).data_ptr())
        return pinned, on_device

    def _output(self, name: str, kind: torch.dtype) -> tuple[Tensor, Tensor]:
        """The pinned buffer of `kind` on the host, and that on the device."""
        shape = tuple(self._context.get_tensor_shape(name))
        on_device = torch.empty(shape, dtype=self._dtypes[name], device="cuda")
        self._context.set_tensor_address(name, on_device.data_ptr())
        return torch.empty(shape, dtype=kind, pin_memory=True), on_device

    def _execute(self) -> None:
        if not self._context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise PlanError("TensorRT failed to run a plan; its log says why")

    def _capture(self, spec: PlanSpec) -> torch.cuda.CUDAGraph | None:
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UP_RUNS):
                self._execute()
        self._stream.synchronize()
        is_capturable = getattr(self._context, "is_stream_capturable", None)
        if is_capturable is not None and not is_capturable(self._stream.cuda_stream):
            logger.warning("plan %s runs without a CUDA graph: TensorRT cannot capture it", spec)
            return None
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self._stream):
                self._execute()
        except (RuntimeError, PlanError) as error:
            logger.warning("plan %s runs without a CUDA graph: %s", spec, error)
            return None
        return graph


def _names(engine: Any) -> list[str]:
    return [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]


def _context(trt: ModuleType, engine: Any) -> Any:
    """For one bucket: without the others' memory, and with kernels that TensorRT-RTX does not swap while it serves."""
    memory = trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
    if not hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
        return engine.create_execution_context(memory)
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(memory)
    config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    return engine.create_execution_context(config)

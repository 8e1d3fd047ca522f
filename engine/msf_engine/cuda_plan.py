"""Runs a function on a GPU as a plan: buffers at fixed addresses on host and device, and optionally a CUDA graph."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from msf_engine.errors import PlanError

logger = logging.getLogger(__name__)

WARM_UP_RUNS = 3


class CudaPlan:
    """A plan of one batch size. One call at a time, but on any thread.

    With a `graph_pool` (of `torch.cuda.graph_pool_handle`) the first call records the function's kernels and later
    ones replay them. Graphs share the pool's memory: that is safe as long as they run one after the other, because the
    outputs have left the device when a call returns.
    """

    def __init__(
        self, function: Callable[..., tuple[Tensor, ...]], example: tuple[Tensor, ...], graph_pool: Any = None
    ) -> None:
        self._function = function
        self._graph_pool = graph_pool
        self._graph: torch.cuda.CUDAGraph | None = None
        self._host_in = tuple(tensor.pin_memory() for tensor in example)
        self._device_in = tuple(tensor.cuda() for tensor in example)
        self._device_out: tuple[Tensor, ...] = ()
        self._host_out: tuple[Tensor, ...] = ()

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.inference_mode():
            if not self._host_out:
                self._prepare()
            for pinned, on_device, tensor in zip(self._host_in, self._device_in, inputs, strict=True):
                pinned.copy_(tensor)
                on_device.copy_(pinned, non_blocking=True)
            self._compute()
            for pinned, on_device in zip(self._host_out, self._device_out, strict=True):
                pinned.copy_(on_device, non_blocking=True)
            torch.cuda.current_stream().synchronize()
            return tuple(pinned.clone() for pinned in self._host_out)

    def device_ms(self, *inputs: Tensor) -> float:
        """Return the milliseconds of one run on the device, without the copies from and to the host."""
        self(*inputs)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        with torch.inference_mode():
            start.record()
            self._compute()
            end.record()
        end.synchronize()
        return float(start.elapsed_time(end))

    def _compute(self) -> None:
        if self._graph is None:
            self._device_out = self._function(*self._device_in)
        else:
            self._graph.replay()

    def _prepare(self) -> None:
        if self._graph_pool is None:
            self._compute()
        else:
            self._capture()
        self._host_out = tuple(
            torch.empty(output.shape, dtype=output.dtype, pin_memory=True) for output in self._device_out
        )

    def _capture(self) -> None:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_RUNS):  # compiles, and lets libraries allocate the memory that they keep
                self._device_out = self._function(*self._device_in)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads of a worker may allocate at the same time; their memory is not part of this graph.
            with torch.cuda.graph(graph, pool=self._graph_pool, capture_error_mode="thread_local"):
                self._device_out = self._function(*self._device_in)
        except torch.cuda.OutOfMemoryError:
            raise
        except (RuntimeError, PlanError) as error:
            logger.warning("a plan runs without a CUDA graph: %s", error)
        else:
            self._graph = graph

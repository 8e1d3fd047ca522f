"""CUDA graphs: the kernels of a function, recorded once and launched together."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from msf_engine.errors import PlanError

logger = logging.getLogger(__name__)

WARM_UP_RUNS = 3


def capture(function: Callable[[], Tensor], stream: torch.cuda.Stream, pool: Any, name: str) -> Callable[[], Tensor]:
    """Run a function a few times on `stream`, and return one that replays its kernels there.

    Its output keeps its address. Graphs share the memory of `pool` (of `torch.cuda.graph_pool_handle`): that is safe
    as long as they run one after the other and each output has been copied before the next graph. A function that
    cannot be captured is returned as it is. Raises torch.OutOfMemoryError.
    """
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP_RUNS):  # compiles, and lets libraries allocate the memory that they keep
            function()
    graph = torch.cuda.CUDAGraph()
    try:
        # Other threads of a worker may allocate at the same time; their memory is not part of this graph.
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            output = function()
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, PlanError) as error:
        logger.warning("%s runs without a CUDA graph: %s", name, error)
        return function

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay

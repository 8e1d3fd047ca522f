"""Processes that `torchrun` starts: they share every batch, and the first of them writes the files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed


@contextmanager
def joined_processes(device: torch.device) -> Iterator[torch.device]:
    """Join torchrun's process group, if there is one, and yield this process's device: one GPU each."""
    if "LOCAL_RANK" not in os.environ:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(days=1))
    try:
        yield device
    finally:
        distributed.destroy_process_group()


def is_first_process() -> bool:
    """Tell whether this process writes the files; true without torchrun."""
    return not distributed.is_initialized() or distributed.get_rank() == 0


@contextmanager
def first_process_first() -> Iterator[None]:
    """Run the body in the first process, then in the others, which find the files that it wrote."""
    if not is_first_process():
        distributed.barrier()
    yield
    if distributed.is_initialized() and is_first_process():
        distributed.barrier()

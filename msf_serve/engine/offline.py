"""Many images with no queue and no clock: what the command line, the warm-up and benchmarks need."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from msf_serve.engine.executor import Executor, SampleRequest


def generate(executor: Executor, requests: Sequence[SampleRequest]) -> list[NDArray[np.uint8]]:
    """Images (H, W, channels) in the order of the requests, as many side by side as there are slots."""
    images: dict[int, NDArray[np.uint8]] = {}
    riders: dict[int, int] = {}  # slot -> place in requests
    waiting = iter(enumerate(requests))
    while len(images) < len(requests):
        while executor.num_free_slots and (following := next(waiting, None)):
            place, request = following
            riders[executor.join(request)] = place
        result = executor.step(_alike(executor))
        if result.failed:
            place = riders[result.failed[0]]
            raise ValueError(f"image {place} met a number that is not finite; lower its guidance scale")
        for slot, image in result.images.items():
            images[riders.pop(slot)] = image
    return [images[place] for place in range(len(requests))]


def _alike(executor: Executor) -> list[int]:
    """A bucket's worth of the slots that need the same plan as the first."""
    first = next(iter(executor.slots.values()))
    alike = [
        number for number, slot in executor.slots.items() if slot.stage is first.stage and slot.guided == first.guided
    ]
    return alike[: executor.plans.buckets[-1]]

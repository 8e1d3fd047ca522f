"""Many images with no queue and no clock: what the command line, the warm-up and benchmarks need."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from msf_engine.errors import PlanError
from msf_engine.executor import Executor, SampleRequest


def generate(executor: Executor, requests: Sequence[SampleRequest], *, strict: bool = False) -> list[NDArray[np.uint8]]:
    """Images (H, W, channels) in the order of the requests, as many side by side as there are slots.

    `strict`: in buckets that leave each image's bytes alone. Raises PlanError where there are none, ValueError for an
    image that met a number that is not finite.
    """
    images: dict[int, NDArray[np.uint8]] = {}
    riders: dict[int, int] = {}  # slot -> place in requests
    waiting = iter(enumerate(requests))
    while len(images) < len(requests):
        while executor.num_free_slots and (following := next(waiting, None)):
            place, request = following
            riders[executor.join(request)] = place
        result = executor.step(*_next_batch(executor, strict))
        if result.failed:
            place = riders[result.failed[0]]
            raise ValueError(f"image {place} met a number that is not finite; lower its guidance scale")
        for slot, image in result.images.items():
            images[riders.pop(slot)] = image
    return [images[place] for place in range(len(requests))]


def _next_batch(executor: Executor, strict: bool) -> tuple[list[int], int]:
    """A bucket's worth of the slots that need the same plan as the first, and the bucket."""
    first = next(iter(executor.slots.values()))
    alike = [
        number for number, slot in executor.slots.items() if slot.stage is first.stage and slot.guided == first.guided
    ]
    buckets = executor.plans.strict[first.stage, first.guided] if strict else executor.plans.buckets
    if not buckets:
        raise PlanError(f"{first.stage} has no batch size in which an image does not depend on its neighbours")
    riders = alike[: buckets[-1]]
    return riders, next(bucket for bucket in buckets if bucket >= len(riders))

"""Loops that make images from noise: the engine's own, and torch as one writes it."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import numpy as np
import torch
from torch import Tensor

from bench.engine.random_models import GUIDANCE_SCALE, NUM_STEPS
from msf_engine.arenas import DecodeRows, StepRows
from msf_engine.arenas.device import to_pixels
from msf_engine.executor import Executor, SampleRequest
from msf_engine.model_plans import ModelPlans
from msf_engine.sampling import SampleNoise, latent_shape, stage_trajectory
from msf_scheduler.stage import Stage

MAX_IN_FLIGHT = 2
Network = Callable[..., Tensor]


class EngineLoop:
    """The executor, driven as the worker does: the next batch starts before the results of the last are read.

    Groups of `num_samples` guided samples follow each other; another thread makes their noise.
    """

    def __init__(self, executor: Executor, num_samples: int, num_rows: int) -> None:
        self._executor = executor
        self._num_samples = num_samples
        self._num_rows = num_rows
        self._in_flight: deque[StepRows | DecodeRows] = deque()
        self.num_images = 0
        self.num_batches: Counter[tuple[Stage, int]] = Counter()

    def run(self, seconds: float) -> float:
        """Make images for about this time, and return the time from the first noise to the last pixel."""
        with ThreadPoolExecutor(1) as noise_thread:
            self._run(noise_thread, 0)
            self.num_images = 0
            self.num_batches.clear()
            started_at = time.perf_counter()
            self._run(noise_thread, seconds)
            return time.perf_counter() - started_at

    def _run(self, noise_thread: ThreadPoolExecutor, seconds: float) -> None:
        deadline = time.perf_counter() + seconds
        groups = (self._requests(seed) for seed in count())
        following = next(groups)
        noise = noise_thread.submit(self._noise, following)
        while True:
            requests, following, ready = following, next(groups), noise.result()
            noise = noise_thread.submit(self._noise, following)
            self._advance(self._executor.join(requests, ready))
            if time.perf_counter() > deadline:
                break
        while self._in_flight:
            self._finish()

    def _advance(self, slots: list[int]) -> None:
        for _ in range(sum(NUM_STEPS.values())):
            self._start(slots, self._num_rows)
        bucket = self._executor.plans.buckets[Stage.DECODE][-1]
        for first in range(0, len(slots), bucket):
            self._start(slots[first : first + bucket], bucket)

    def _start(self, slots: list[int], bucket: int) -> None:
        if len(self._in_flight) == MAX_IN_FLIGHT:
            self._finish()
        rows = self._executor.start(slots, bucket)
        self.num_batches[rows.stage, bucket] += 1
        self._in_flight.append(rows)

    def _finish(self) -> None:
        self.num_images += len(self._executor.finish(self._in_flight.popleft()).images)

    def _requests(self, seed: int) -> list[SampleRequest]:
        steps = NUM_STEPS[Stage.BASE], NUM_STEPS[Stage.RESIDUAL]
        return [SampleRequest(index, seed, index, steps, GUIDANCE_SCALE) for index in range(self._num_samples)]

    def _noise(self, requests: Sequence[SampleRequest]) -> SampleNoise:
        return SampleNoise.of(self._executor.plans.config, [r.seed for r in requests], [r.index for r in requests])


def plain_images(plans: ModelPlans, network: Callable[[Stage], Network], device: torch.device, num_samples: int) -> int:
    """Make guided images in torch with all state on the device, one kernel after the other; return their number."""
    config = plans.config
    latents: dict[Stage, Tensor] = {}
    labels = torch.arange(num_samples, device=device) % config.num_classes
    labels = torch.cat((labels, torch.full_like(labels, config.num_classes)))
    with torch.inference_mode():
        for stage, num_steps in NUM_STEPS.items():
            trajectory = stage_trajectory(config, stage, plans.time_embeddings[stage], num_steps, GUIDANCE_SCALE)
            embeddings = torch.from_numpy(trajectory.time_embedding).to(device)
            x = torch.randn(num_samples, *latent_shape(config, stage), device=device)
            d_prev = torch.zeros_like(x)
            cond = [torch.cat((latents[Stage.BASE],) * 2)] if latents else []
            for embedding, (a, b, c) in zip(embeddings, trajectory.updates.tolist(), strict=True):
                rows = torch.cat((x, x)), embedding.expand(2 * num_samples, -1).contiguous(), labels, *cond
                conditional, unconditional = network(stage)(*rows).chunk(2)
                d = unconditional + GUIDANCE_SCALE * (conditional - unconditional)
                x = a * x + b * d + c * d_prev
                d_prev = d
            latents[stage] = x
        bucket = plans.buckets[Stage.DECODE][-1]
        pairs = zip(torch.split(latents[Stage.BASE], bucket), torch.split(latents[Stage.RESIDUAL], bucket), strict=True)
        pixels = [to_pixels(network(Stage.DECODE)(base, residual)).cpu().numpy() for base, residual in pairs]
    return len(np.concatenate(pixels))


def images_per_s(make_images: Callable[[], int], seconds: float) -> float:
    """Return the rate of a function that returns how many images it made, after a first call."""
    make_images()
    started_at, num_images = time.perf_counter(), 0
    for _ in _until(started_at + seconds):
        num_images += make_images()
    return num_images / (time.perf_counter() - started_at)


def _until(deadline: float) -> Iterator[None]:
    yield
    while time.perf_counter() < deadline:
        yield

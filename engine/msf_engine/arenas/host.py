"""Arenas in the host's memory, for plans whose inputs and outputs are arrays: gathered into a plan's own inputs."""

from __future__ import annotations

import math
import time

import numpy as np
from numpy.typing import NDArray

from msf_engine.arenas import DecodeRows, Indices, StepRows
from msf_engine.model_plans import ModelPlans, padded
from msf_engine.plan import Array
from msf_engine.sampling import SampleNoise, advance, blank_latents, guide, latent_shape, noisy_condition, to_pixels
from msf_scheduler.stage import Stage


class HostArenas:
    """The next batch is gathered as soon as the one before is scattered; what the host does then overlaps with it."""

    queues_batches = False

    def __init__(self, plans: ModelPlans, capacity: int) -> None:
        self._plans = plans
        self._config = plans.config
        stages = plans.config.denoising_stages
        self._first, self._last = stages[0], stages[-1]
        shapes = {stage: (capacity, *latent_shape(plans.config, stage)) for stage in stages}
        self._x, self._d_prev = (
            {stage: np.zeros(shape, np.float32) for stage, shape in shapes.items()} for _ in range(2)
        )
        num_cond = capacity if self._first != self._last else 0
        self._cond = np.zeros((num_cond, *shapes[self._first][1:]), np.float32)  # noise until the stage before ends
        self._blank = blank_latents(plans.config)
        self._finite = np.ones(capacity, bool)
        self._started: StepRows | DecodeRows | None = None
        self._started_at = 0.0

    def write(self, slots: Indices, noise: SampleNoise) -> None:
        """Write the noise that samples start from."""
        for stage, x in zip(self._x, noise.stages, strict=True):
            self._x[stage][slots] = x
            self._d_prev[stage][slots] = 0
        if noise.condition is not None:
            self._cond[slots] = noise.condition

    def start(self, rows: StepRows | DecodeRows) -> None:
        """Complete the batch before, and begin this one."""
        if self._started is not None:
            self.wait(self._started)
        if isinstance(rows, StepRows):
            plan = self._plans.by_stage[rows.stage]
            self._gather(rows, plan.inputs(rows.bucket))
        else:
            plan = self._plans.by_stage[Stage.DECODE]
            slots = padded(rows.slots, rows.bucket)
            for x, array in zip(self._x.values(), plan.inputs(rows.bucket), strict=True):
                np.take(x, slots, axis=0, out=array)
        self._started_at = time.perf_counter()
        plan.start(rows.bucket)
        self._started = rows

    def wait(self, rows: StepRows | DecodeRows) -> None:
        """Wait for the plan, and scatter a step's results."""
        if rows is not self._started:
            return
        self._started = None
        output = self._plans.by_stage[rows.stage].wait()
        rows.seconds = time.perf_counter() - self._started_at
        if isinstance(rows, StepRows):
            self._scatter(rows, output)
        else:
            rows.pixels = to_pixels(output[: len(rows.slots)])

    def preview(
        self, slots: Indices, estimates: NDArray[np.float32], is_blank: NDArray[np.bool_], bucket: int
    ) -> Array:
        """Decode the last stage's estimates, with the stage before as it is."""
        if self._started is not None:
            self.wait(self._started)
        latents = {stage: x[slots] for stage, x in self._x.items()}
        p, q = estimates.T[:, :, None, None, None]
        estimate = p * latents[self._last] - q * self._d_prev[self._last][slots]
        estimate[is_blank] = self._blank
        latents[self._last] = estimate
        plan = self._plans.by_stage[Stage.DECODE]
        for array, values in zip(plan.inputs(bucket), latents.values(), strict=True):
            array[...] = padded(values, bucket)
        plan.start(bucket)
        return to_pixels(plan.wait()[: len(slots)])

    def _gather(self, rows: StepRows, inputs: tuple[Array, ...]) -> None:
        """Fill a plan's inputs: a row for each sample, the second rows of guided ones, copies of the first row."""
        samples = rows.samples
        slots = rows.slots.take(samples)
        self._x[rows.stage].take(slots, 0, inputs[0], "clip")  # any mode but "raise" writes into `out` directly
        rows.table.time_embedding.take(rows.steps.take(samples), 0, inputs[1], "clip")
        inputs[2][: rows.num_rows] = rows.labels
        inputs[2][rows.num_rows :] = rows.labels[0]
        if len(inputs) > 3:
            self._cond.take(slots, 0, inputs[3], "clip")

    def _scatter(self, rows: StepRows, output: NDArray[np.float32]) -> None:
        slots, num_samples = rows.slots, len(rows.slots)
        d = output[:num_samples]  # (S, C, h, w)
        if rows.num_guided:
            scales = rows.guidance_scales[:, None, None, None]
            negative, channels = output[num_samples : rows.num_rows], self._config.stage(rows.stage).guidance.channels
            guided = guide(d[: rows.num_guided], negative, scales, channels)
            d = guided if rows.num_guided == num_samples else np.concatenate((guided, d[rows.num_guided :]))
        a, b, c = rows.table.updates.take(rows.steps, 0).T[:, :, None, None, None]
        all_x, all_d = self._x[rows.stage], self._d_prev[rows.stage]
        x = advance(all_x.take(slots, 0), d, all_d.take(slots, 0), a, b, c)
        all_x[slots], all_d[slots] = x, d
        if math.isfinite(np.add.reduce(x, None)):  # the sum of finite numbers, unless it overflows
            rows.finite = self._finite[:num_samples]
        else:
            rows.finite = np.asarray(np.isfinite(x).all(axis=(1, 2, 3)))
        if rows.stage is not self._last and len(rows.completes):
            ended = rows.completes
            self._cond[ended] = noisy_condition(self._config, all_x[ended], self._cond[ended])

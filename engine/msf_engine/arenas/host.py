"""Arenas in the host's memory, for plans whose inputs and outputs are arrays: gathered into a plan's own inputs."""

from __future__ import annotations

import math
import time

import numpy as np
from numpy.typing import NDArray

from msf_engine.arenas import DecodeRows, Indices, StepRows
from msf_engine.model_plans import ModelPlans, padded
from msf_engine.plan import Array
from msf_engine.sampling import SampleNoise, advance, guide, latent_shape, noisy_condition
from msf_scheduler.stage import Stage


class HostArenas:
    """The next batch is gathered as soon as the one before is scattered; what the host does then overlaps with it."""

    queues_batches = False

    def __init__(self, plans: ModelPlans, capacity: int) -> None:
        self._plans = plans
        self._config = plans.config
        shapes = {stage: latent_shape(plans.config, stage) for stage in (Stage.BASE, Stage.RESIDUAL)}
        self._x, self._d_prev = (
            {stage: np.zeros((capacity, *shape), np.float32) for stage, shape in shapes.items()} for _ in range(2)
        )
        self._cond = np.zeros((capacity, *shapes[Stage.BASE]), np.float32)  # its noise until the base is complete
        statistics = plans.config.residual.statistics
        empty = -np.array(statistics.mean, np.float32) / np.array(statistics.std, np.float32)
        self._empty_residual = np.broadcast_to(empty[:, None, None], shapes[Stage.RESIDUAL])
        self._finite = np.ones(capacity, bool)
        self._started: StepRows | DecodeRows | None = None
        self._started_at = 0.0

    def write(self, slots: Indices, noise: SampleNoise) -> None:
        """Write the noise that samples start from."""
        for stage, x in ((Stage.BASE, noise.base), (Stage.RESIDUAL, noise.residual)):
            self._x[stage][slots] = x
            self._d_prev[stage][slots] = 0
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
            for stage, array in zip((Stage.BASE, Stage.RESIDUAL), plan.inputs(rows.bucket), strict=True):
                np.take(self._x[stage], slots, axis=0, out=array)
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
            rows.pixels = output[: len(rows.slots)].copy()

    def preview(self, slots: Indices, times: NDArray[np.float64], bucket: int) -> Array:
        """Decode the end of the path along the last velocity; at the residual's start (t = 1) the base alone."""
        if self._started is not None:
            self.wait(self._started)
        t = times.astype(np.float32)[:, None, None, None]
        residual = self._x[Stage.RESIDUAL][slots] - t * self._d_prev[Stage.RESIDUAL][slots]
        residual[times == 1.0] = self._empty_residual
        plan = self._plans.by_stage[Stage.DECODE]
        inputs = plan.inputs(bucket)
        inputs[0][...] = padded(self._x[Stage.BASE][slots], bucket)
        inputs[1][...] = padded(residual, bucket)
        plan.start(bucket)
        return plan.wait()[: len(slots)].copy()

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

    def _scatter(self, rows: StepRows, velocity: NDArray[np.float32]) -> None:
        slots, num_samples = rows.slots, len(rows.slots)
        d = velocity[:num_samples]  # (S, C, h, w)
        if rows.num_guided:
            scales = rows.guidance_scales[:, None, None, None]
            guided = guide(d[: rows.num_guided], velocity[num_samples : rows.num_rows], scales)
            d = guided if rows.num_guided == num_samples else np.concatenate((guided, d[rows.num_guided :]))
        a, b, c = rows.table.updates.take(rows.steps, 0).T[:, :, None, None, None]
        all_x, all_d = self._x[rows.stage], self._d_prev[rows.stage]
        x = advance(all_x.take(slots, 0), d, all_d.take(slots, 0), a, b, c)
        all_x[slots], all_d[slots] = x, d
        if math.isfinite(np.add.reduce(x, None)):  # the sum of finite numbers, unless it overflows
            rows.finite = self._finite[:num_samples]
        else:
            rows.finite = np.asarray(np.isfinite(x).all(axis=(1, 2, 3)))
        if rows.stage is Stage.BASE and len(rows.completes):
            ended = rows.completes
            self._cond[ended] = noisy_condition(self._config, self._x[Stage.BASE][ended], self._cond[ended])

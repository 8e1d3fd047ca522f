"""Arenas on a device that torch knows, for networks that take tensors there. They have not run on a GPU yet.

A batch is a few integers and floats per row, written into one pinned host tensor and copied at once. On a GPU the rest
of a step is one CUDA graph: gather, network, guidance and update, scatter. Only pixels and finite flags come back, by
copies that the host awaits when it wants the result, so that it reads batch k while batch k + 1 is computed. What must
happen in this order is in this one file, long as it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from msf_engine.arenas import DecodeRows, Indices, StepRows
from msf_engine.arenas.device_fields import DecodeField, StepField, floats
from msf_engine.cuda_graph import capture
from msf_engine.device_plan import DevicePlan
from msf_engine.errors import PlanError
from msf_engine.model_plans import ModelPlans, padded
from msf_engine.plan import Array
from msf_engine.sampling import SampleNoise, blank_latents, latent_shape
from msf_engine.step_table import StepTable
from msf_scheduler.stage import Stage

MIN_TABLE_ROWS = 1024


@dataclass(frozen=True)
class _Program:
    """The computation of a batch of one size: from `fields` (F, R) on the device to the tensor that the host gets."""

    fields: Tensor
    run: Callable[[], Tensor]


class _Event(Protocol):
    """Point in the order of the work: a `torch.cuda.Event` on a GPU."""

    def synchronize(self) -> None: ...

    def elapsed_time(self, end_event: Any) -> float: ...


class _HostEvent:
    """Point in time: on a CPU, work is done when it is enqueued."""

    def __init__(self) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        """Return at once."""

    def elapsed_time(self, end_event: _HostEvent) -> float:
        """Return the milliseconds until another event."""
        return 1e3 * (end_event.at - self.at)


@dataclass(frozen=True)
class _Launch:
    """A batch under way: `output` is in pinned memory, and valid after `end`."""

    output: Tensor
    begin: _Event
    end: _Event


class DeviceArenas:
    """Slots in tensors on the device of the plans; the last slot is scratch, for rows that are not a sample.

    All work is in the order of one stream. Any thread may call, one at a time.
    """

    queues_batches = True

    def __init__(self, plans: ModelPlans, capacity: int) -> None:
        """Allocate the slots and, on a GPU, capture a graph for each stage and bucket. Raises PlanError."""
        self._config, self._buckets = plans.config, plans.buckets
        self._networks: dict[Stage, Callable[..., Tensor]] = {}
        for stage, plan in plans.by_stage.items():
            assert isinstance(plan, DevicePlan)
            self._networks[stage], self.device = plan.network, plan.device
        self._scratch = capacity
        on_gpu = self.device.type == "cuda"
        self.stream = torch.cuda.Stream(self.device) if on_gpu else None  # type: ignore[no-untyped-call]
        stages = plans.config.denoising_stages
        self._last = stages[-1]
        shapes = {stage: latent_shape(plans.config, stage) for stage in stages}
        with self._enqueuing("allocate the slots"):
            self._x, self._d_prev = (
                {stage: self._zeros(capacity + 1, *shape) for stage, shape in shapes.items()} for _ in range(2)
            )
            num_cond = capacity + 1 if len(stages) > 1 else 0
            self._cond = self._zeros(num_cond, *shapes[stages[0]])  # its noise until the stage before is complete
            self._blank = self._sent(blank_latents(plans.config))
            num_rows = max(MIN_TABLE_ROWS, 4 * plans.config.sampling.max_num_steps)
            self._tables = {stage: self._table(stage, num_rows) for stage in shapes}
            self._num_mirrored = dict.fromkeys(shapes, 0)
            self._capture_all()
        self._launches: dict[int, _Launch] = {}  # by the id of their rows

    def write(self, slots: Indices, noise: SampleNoise) -> None:
        """Write the noise that samples start from."""
        with self._enqueuing("write noise"):
            targets = self._sent(slots.astype(np.int64))
            for stage, x in zip(self._x, noise.stages, strict=True):
                self._x[stage].index_copy_(0, targets, self._sent(x))
                self._d_prev[stage].index_fill_(0, targets, 0)
            if noise.condition is not None:
                self._cond.index_copy_(0, targets, self._sent(noise.condition))

    def start(self, rows: StepRows | DecodeRows) -> None:
        """Enqueue a batch. It does not wait for the device unless a stage's table of steps outgrows its memory."""
        with self._enqueuing(f"start a batch of {rows.stage}"):
            if isinstance(rows, StepRows):
                self._mirror(rows.stage, rows.table)
                fields = self._step_fields(rows)
            else:
                complete = np.tile(np.array([1, 0], np.float32), (len(rows.slots), 1))
                fields = self._decode_fields(rows.slots, complete, np.zeros(len(rows.slots), bool), rows.bucket)
            self._launches[id(rows)] = self._launch(rows.stage, rows.bucket, fields)

    def wait(self, rows: StepRows | DecodeRows) -> None:
        """Wait for this batch, not for those after it."""
        launch = self._launches.pop(id(rows), None)
        if launch is None:
            return
        output = self._finished(launch)[: len(rows.slots)]
        rows.seconds = launch.begin.elapsed_time(launch.end) / 1e3
        if isinstance(rows, StepRows):
            rows.finite = output
        else:
            rows.pixels = output

    def preview(
        self, slots: Indices, estimates: NDArray[np.float32], is_blank: NDArray[np.bool_], bucket: int
    ) -> Array:
        """Decode the last stage's estimates, with the stage before as it is."""
        with self._enqueuing("start a preview"):
            launch = self._launch(Stage.DECODE, bucket, self._decode_fields(slots, estimates, is_blank, bucket))
        return self._finished(launch)[: len(slots)]

    def run_scratch(self, stage: Stage, bucket: int, num_runs: int) -> None:
        """Enqueue batches that touch no sample, to measure what one takes on the device."""
        program = self._programs[stage, bucket]
        with self._enqueuing("run batches without samples"):
            self._fill_scratch(program.fields)
            for _ in range(num_runs):
                program.run()

    @contextmanager
    def _enqueuing(self, action: str) -> Iterator[None]:
        try:
            with torch.inference_mode(), torch.cuda.stream(self.stream):
                yield
        except RuntimeError as error:  # also when the device's memory is full
            raise PlanError(f"the device cannot {action}: {error}") from error

    def _launch(self, stage: Stage, bucket: int, fields: Tensor) -> _Launch:
        program = self._programs[stage, bucket]
        begin = self._record()
        program.fields.copy_(fields, non_blocking=True)
        output = program.run()
        host_output = self._host(output.shape, output.dtype)
        host_output.copy_(output, non_blocking=True)
        return _Launch(host_output, begin, self._record())

    def _record(self) -> _Event:
        if self.stream is None:
            return _HostEvent()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(self.stream)
        return event

    def _finished(self, launch: _Launch) -> Array:
        try:
            launch.end.synchronize()
        except RuntimeError as error:
            raise PlanError(f"the device failed to compute a batch: {error}") from error
        return launch.output.numpy()

    def _capture_all(self) -> None:
        """Make the programs, as graphs on a GPU; they have the addresses of slots and tables."""
        pool = None if self.stream is None else torch.cuda.graph_pool_handle()
        self._programs: dict[tuple[Stage, int], _Program] = {}
        for stage, buckets in self._buckets.items():
            for bucket in buckets:
                num_fields = len(DecodeField if stage is Stage.DECODE else StepField)
                fields = torch.empty((num_fields, bucket), dtype=torch.int64, device=self.device)
                self._fill_scratch(fields)
                run: Callable[[], Tensor] = (
                    partial(self._decode, fields) if stage is Stage.DECODE else partial(self._step, stage, fields)
                )
                if self.stream is not None:
                    run = capture(run, self.stream, pool, f"stage {stage} in batches of {bucket}")
                self._programs[stage, bucket] = _Program(fields, run)

    def _fill_scratch(self, fields: Tensor) -> None:
        """Write rows of the scratch slot, at the first step, with label 0 and scale 0."""
        fields.zero_()
        fields[0] = self._scratch  # both kinds of batches have their slots first
        if len(fields) == len(StepField):
            fields[StepField.TARGETS] = fields[StepField.COMPLETES] = self._scratch

    def _step(self, stage: Stage, fields: Tensor) -> Tensor:
        """Advance samples (R,) by a step; returns whether each is finite (R,)."""
        slots, steps, labels, partners, targets, completes, scale_bits = fields.unbind()
        time_embedding, updates = self._tables[stage]
        x = self._x[stage].index_select(0, slots)  # (R, C, h, w)
        inputs = [x, time_embedding.index_select(0, steps), labels]
        stage_config = self._config.stage(stage)
        if stage_config.denoiser.cond_channels:
            inputs.append(self._cond.index_select(0, slots))
        output = self._networks[stage](*inputs)
        # As in `sampling.guide` and `sampling.advance`: separate products and sums, so that the bytes are the same.
        channels = stage_config.guidance.channels
        positive, negative = output[:, :channels], output.index_select(0, partners)[:, :channels]
        d = negative + floats(scale_bits) * (positive - negative)
        if channels is not None:
            d = torch.cat((d, output[:, channels:]), dim=1)
        a, b, c = updates.index_select(0, steps)[:, :, None, None, None].unbind(1)
        x = a * x + b * d + c * self._d_prev[stage].index_select(0, slots)
        self._x[stage].index_copy_(0, targets, x)
        self._d_prev[stage].index_copy_(0, targets, d)
        if stage is not self._last:
            noise = self._cond.index_select(0, completes)
            self._cond.index_copy_(0, completes, x + self._config.conditioning_noise * (noise - x))
        return x.isfinite().flatten(1).all(1)

    def _decode(self, fields: Tensor) -> Tensor:
        """Decode samples in or after the last denoising stage (R,) to pixels (R, H, W, channels)."""
        slots, is_blank, p_bits, q_bits = fields.unbind()
        *before, last = (x.index_select(0, slots) for x in self._x.values())
        estimate = floats(p_bits) * last - floats(q_bits) * self._d_prev[self._last].index_select(0, slots)
        estimate = torch.where(is_blank.bool()[:, None, None, None], self._blank, estimate)
        return to_pixels(self._networks[Stage.DECODE](*before, estimate))

    def _step_fields(self, rows: StepRows) -> Tensor:
        tensor = self._host((len(StepField), rows.bucket), torch.int64)
        fields, samples, num_samples = tensor.numpy(), rows.samples, len(rows.slots)
        fields[StepField.SLOTS] = rows.slots[samples]
        fields[StepField.STEPS] = rows.steps[samples]
        fields[StepField.LABELS] = padded(rows.labels, rows.bucket)
        fields[StepField.PARTNERS] = np.arange(rows.bucket)
        fields[StepField.PARTNERS, : rows.num_guided] = np.arange(num_samples, rows.num_rows)
        fields[StepField.TARGETS] = fields[StepField.COMPLETES] = self._scratch
        fields[StepField.TARGETS, :num_samples] = rows.slots
        if len(rows.completes):
            completes = np.isin(rows.slots, rows.completes)
            fields[StepField.COMPLETES, :num_samples][completes] = rows.slots[completes]
        scales = fields[StepField.SCALES].view(np.float32)[: rows.bucket]
        scales[...] = 1
        scales[: rows.num_guided] = rows.guidance_scales
        return tensor

    def _decode_fields(
        self, slots: Indices, estimates: NDArray[np.float32], is_blank: NDArray[np.bool_], bucket: int
    ) -> Tensor:
        tensor = self._host((len(DecodeField), bucket), torch.int64)
        fields = tensor.numpy()
        fields[DecodeField.SLOTS] = padded(slots, bucket)
        fields[DecodeField.IS_BLANK] = padded(is_blank, bucket)
        for field, values in zip((DecodeField.P, DecodeField.Q), estimates.T, strict=True):
            fields[field].view(np.float32)[:bucket] = padded(values, bucket)
        return tensor

    def _mirror(self, stage: Stage, table: StepTable) -> None:
        """Copy the rows of a table that the device lacks."""
        num_mirrored, num_rows = self._num_mirrored[stage], len(table)
        if num_mirrored == num_rows:
            return
        if num_rows > len(self._tables[stage][0]):
            if self.stream is not None:
                self.stream.synchronize()  # the graphs of batches under way have the old addresses
            self._tables[stage] = self._table(stage, 2 * num_rows)
            self._num_mirrored[stage] = num_mirrored = 0
            self._capture_all()
        for tensor, array in zip(self._tables[stage], (table.time_embedding, table.updates), strict=True):
            tensor[num_mirrored:num_rows] = self._sent(array[num_mirrored:])
        self._num_mirrored[stage] = num_rows

    def _table(self, stage: Stage, num_rows: int) -> tuple[Tensor, Tensor]:
        """Return memory for a stage's time embeddings (T, D) and updates (T, 3)."""
        return self._zeros(num_rows, self._config.stage(stage).denoiser.width), self._zeros(num_rows, 3)

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, device=self.device)

    def _host(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Allocate host memory; torch reuses what is pinned only after the copies from it and into it have ended."""
        return torch.empty(shape, dtype=dtype, pin_memory=self.stream is not None)

    def _sent(self, array: Array) -> Tensor:
        """Copy an array to the device, without waiting."""
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        return (tensor if self.stream is None else tensor.pin_memory()).to(self.device, non_blocking=True)


def to_pixels(levels: Tensor) -> Tensor:
    """Round grey levels to uint8, as `sampling.to_pixels` does."""
    return levels.nan_to_num().round().clamp(0, 255).to(torch.uint8)

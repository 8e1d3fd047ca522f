"""The step executor: samples in slots, advanced together one step at a time.

Samples of one step batch may be at different steps and have different labels, seeds and guidance scales; they join,
wait and leave between steps. Which samples form a batch is the batching policy's choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msf_engine.arenas import Arenas, DecodeRows, Indices, StepRows
from msf_engine.arenas.choice import make_arenas
from msf_engine.model_plans import ModelPlans, smallest_bucket
from msf_engine.sampling import SampleNoise
from msf_engine.step_table import StepTable
from msf_scheduler.stage import Stage

Slots = Sequence[int] | NDArray[np.integer[Any]]
_STAGES = tuple(Stage)
_BASE, _RESIDUAL, _DECODE = range(len(_STAGES))


@dataclass(frozen=True)
class SampleRequest:
    """One image to make. (`seed`, `index`) alone decide its noise."""

    label: int
    seed: int
    index: int
    num_base_steps: int
    num_residual_steps: int
    guidance_scale: float


@dataclass(frozen=True)
class StepResult:
    """Outcome of a batch. `images` (H, W, channels) uint8 by slot; samples of `failed` slots are not finite."""

    stage: Stage
    bucket: int
    images: dict[int, NDArray[np.uint8]] = field(default_factory=dict)
    failed: tuple[int, ...] = ()


class Executor:
    """Runs one model version's plans for at most `capacity` samples. Not thread-safe: one caller at a time.

    `start` counts the steps of its samples at once, so that the next batch can be chosen while this one is computed.
    """

    def __init__(self, plans: ModelPlans, capacity: int, arenas: Arenas | None = None) -> None:
        self.plans = plans
        self.capacity = capacity
        self._arenas = arenas or make_arenas(plans, capacity)
        self._null_labels = np.full(capacity, plans.config.num_classes)
        self._tables = tuple(
            StepTable(plans.config, stage, plans.time_embeddings[stage]) for stage in (Stage.BASE, Stage.RESIDUAL)
        )
        # By slot.
        self._stages = np.zeros(capacity, np.int8)
        self._steps = np.zeros(capacity, np.intp)  # rows of the stage's table
        self._ends = np.zeros((2, capacity), np.intp)  # of each stage's schedule
        self._residual_starts = np.zeros(capacity, np.intp)
        self._labels = np.zeros(capacity, np.int64)
        self._scales = np.zeros(capacity, np.float32)
        self._is_scaled = np.zeros(capacity, bool)
        self._free = list(reversed(range(capacity)))
        self._in_flight: list[StepRows | DecodeRows] = []
        self._leaving: set[int] = set()  # slots that batches under way still write

    @property
    def num_free_slots(self) -> int:
        """Slots that samples can join."""
        return len(self._free)

    @property
    def queues_batches(self) -> bool:
        """True if a batch may be started while another, of any executor on the device, is computed."""
        return self._arenas.queues_batches

    def residual_step(self, slot: int) -> int | None:
        """Return the number of the residual's step that a sample takes next; None in another stage."""
        if self._stages[slot] != _RESIDUAL:
            return None
        return int(self._steps[slot] - self._residual_starts[slot])

    def join(self, requests: Sequence[SampleRequest], noise: SampleNoise | None = None) -> list[int]:
        """Give samples slots, of which enough must be free; `noise` is theirs if it has been computed before."""
        if noise is None:
            noise = SampleNoise.of(self.plans.config, [r.seed for r in requests], [r.index for r in requests])
        slots = [self._free.pop() for _ in requests]
        for slot, request in zip(slots, requests, strict=True):
            num_steps = request.num_base_steps, request.num_residual_steps
            starts = [
                table.offset(count, request.guidance_scale)
                for table, count in zip(self._tables, num_steps, strict=True)
            ]
            self._stages[slot] = _BASE
            self._steps[slot], self._residual_starts[slot] = starts
            self._ends[:, slot] = np.add(starts, num_steps)
            self._labels[slot] = request.label
            self._scales[slot] = request.guidance_scale
            self._is_scaled[slot] = self._scales[slot] != 1
        self._arenas.write(np.array(slots), noise)
        return slots

    def leave(self, slot: int) -> None:
        """Free a slot at any point of its sample."""
        if self._is_in_flight(slot):
            self._leaving.add(slot)
        else:
            self._free.append(slot)

    def start(self, slots: Slots, bucket: int | None = None) -> StepRows | DecodeRows:
        """Begin to advance samples of one stage by a step, or to decode them.

        The default bucket is the smallest that holds their rows. Raises PlanError, as `finish` does.
        """
        indices = np.asarray(slots, np.intp)
        stage = self._stages[indices[0]]
        rows = self._decode_rows(indices, bucket) if stage == _DECODE else self._step_rows(indices, stage, bucket)
        self._in_flight.append(rows)
        try:
            self._arenas.start(rows)
        except BaseException:
            self._in_flight.remove(rows)
            raise
        return rows

    def wait(self, rows: StepRows | DecodeRows) -> None:
        """Return once a batch has been computed. One that raises is over, and must not be finished."""
        try:
            self._arenas.wait(rows)
        except BaseException:
            self._end(rows)
            raise

    def finish(self, rows: StepRows | DecodeRows) -> StepResult:
        """Return the outcome of a batch; the oldest must be finished first. Decoded and failed samples leave."""
        assert rows is self._in_flight[0]
        self.wait(rows)
        absent = self._end(rows)
        if isinstance(rows, DecodeRows):
            assert rows.pixels is not None
            pixels = zip(rows.slots.tolist(), rows.pixels, strict=True)
            result = StepResult(Stage.DECODE, rows.bucket, images={s: image for s, image in pixels if s not in absent})
        else:
            assert rows.finite is not None
            failed = () if rows.finite.all() else tuple(set(rows.slots[~rows.finite].tolist()) - absent)
            result = StepResult(rows.stage, rows.bucket, failed=failed)
        for slot in (*result.images, *result.failed):
            self.leave(slot)
        return result

    def step(self, slots: Slots, bucket: int | None = None) -> StepResult:
        """Run a batch from start to finish."""
        return self.finish(self.start(slots, bucket))

    def preview(self, slots: Sequence[int]) -> dict[int, NDArray[np.uint8]]:
        """Decode estimates of samples in RESIDUAL, without advancing them: (H, W, channels) uint8 by slot.

        Before the residual's first step the estimate is the base alone, as if decoded from `up(base)`; later, the end
        of the path along the last step's velocity. It shows all steps that have been started.
        """
        images: dict[int, NDArray[np.uint8]] = {}
        buckets = self.plans.buckets[Stage.DECODE]
        for start in range(0, len(slots), buckets[-1]):
            part = np.asarray(slots[start : start + buckets[-1]])
            times = self._tables[_RESIDUAL].times[self._steps[part]]
            pixels = self._arenas.preview(part, times, smallest_bucket(buckets, len(part)))
            images |= zip(part.tolist(), pixels, strict=True)
        return images

    def _end(self, rows: StepRows | DecodeRows) -> set[int]:
        """Return the slots that samples left while the batch was under way, and free those that no other batch has."""
        self._in_flight.remove(rows)
        absent = self._leaving.intersection(rows.slots.tolist())
        released = {slot for slot in absent if not self._is_in_flight(slot)}
        self._leaving -= released
        self._free.extend(released)
        return absent

    def _is_in_flight(self, slot: int) -> bool:
        return any(slot in rows.slots for rows in self._in_flight)

    def _step_rows(self, slots: Indices, stage: int, bucket: int | None) -> StepRows:
        table, steps = self._tables[stage], self._steps.take(slots)
        num_guided = 0
        if table.has_guidance:
            guided = table.in_interval.take(steps) & self._is_scaled.take(slots)
            num_guided = int(np.count_nonzero(guided))
        if 0 < num_guided < len(slots):  # guided samples first: their second rows are then slices
            order = np.argsort(~guided, kind="stable")
            slots, steps = slots[order], steps[order]
        labels = self._labels.take(slots)
        if num_guided:
            labels = np.concatenate((labels, self._null_labels[:num_guided]))
        self._steps[slots] = next_steps = steps + 1
        completes = slots[next_steps == self._ends[stage].take(slots)]
        if len(completes):
            self._stages[completes] = stage + 1
            self._steps[completes] = self._residual_starts[completes]
        return StepRows(
            _STAGES[stage],
            bucket or smallest_bucket(self.plans.buckets[_STAGES[stage]], len(labels)),
            slots,
            num_guided,
            table,
            steps,
            labels,
            self._scales.take(slots[:num_guided]),
            completes,
        )

    def _decode_rows(self, slots: Indices, bucket: int | None) -> DecodeRows:
        return DecodeRows(bucket or smallest_bucket(self.plans.buckets[Stage.DECODE], len(slots)), slots)

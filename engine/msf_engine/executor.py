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
from msf_engine.config import ModelConfig
from msf_engine.model_plans import ModelPlans, smallest_bucket
from msf_engine.sampling import SampleNoise
from msf_engine.step_table import StepTable
from msf_scheduler.stage import Stage

Slots = Sequence[int] | NDArray[np.integer[Any]]


@dataclass(frozen=True)
class SampleRequest:
    """One image to make. (`seed`, `index`) alone decide its noise; `num_steps` are of each denoising stage.

    Guidance steers away from class `negative_label`, by default from the null label.
    """

    label: int
    seed: int
    index: int
    num_steps: tuple[int, ...]
    guidance_scale: float
    negative_label: int | None = None

    def null_label(self, config: ModelConfig) -> int:
        """Return the label of a guided step's second row."""
        return config.num_classes if self.negative_label is None else self.negative_label


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
        config, self._names = plans.config, plans.config.all_stages
        self._tables = tuple(StepTable(config, stage, plans.time_embeddings[stage]) for stage in self._names[:-1])
        num_stages = len(self._tables)  # also the position of DECODE
        # By slot. A stage is its position in `_names`.
        self._stages = np.zeros(capacity, np.int8)
        self._steps = np.zeros(capacity, np.intp)  # rows of the stage's table
        self._starts = np.zeros((num_stages + 1, capacity), np.intp)  # of each stage's schedule
        self._ends = np.zeros((num_stages, capacity), np.intp)
        self._labels = np.zeros(capacity, np.int64)
        self._null_labels = np.zeros(capacity, np.int64)
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

    def last_stage_step(self, slot: int) -> int | None:
        """Return the number of the last denoising stage's step that a sample takes next; None in another stage."""
        last = len(self._tables) - 1
        if self._stages[slot] != last:
            return None
        return int(self._steps[slot] - self._starts[last, slot])

    def join(self, requests: Sequence[SampleRequest], noise: SampleNoise | None = None) -> list[int]:
        """Give samples slots, of which enough must be free; `noise` is theirs if it has been computed before."""
        if noise is None:
            noise = SampleNoise.of(self.plans.config, [r.seed for r in requests], [r.index for r in requests])
        slots = [self._free.pop() for _ in requests]
        for slot, request in zip(slots, requests, strict=True):
            starts = [
                table.offset(count, request.guidance_scale)
                for table, count in zip(self._tables, request.num_steps, strict=True)
            ]
            self._stages[slot], self._steps[slot] = 0, starts[0]
            self._starts[:-1, slot] = starts
            self._ends[:, slot] = np.add(starts, request.num_steps)
            self._labels[slot] = request.label
            self._null_labels[slot] = request.null_label(self.plans.config)
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
        is_decode = stage == len(self._tables)
        rows = self._decode_rows(indices, bucket) if is_decode else self._step_rows(indices, stage, bucket)
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
        """Decode estimates of samples in the last denoising stage, without advancing them: (H, W, channels) uint8.

        By slot. The estimate is the data at the end of the path along the last step's output; before the first step,
        that of the stage before alone, as if decoded from `up(base)`. It shows all steps that have been started.
        """
        images: dict[int, NDArray[np.uint8]] = {}
        buckets, table, starts = self.plans.buckets[Stage.DECODE], self._tables[-1], self._starts[-2]
        for start in range(0, len(slots), buckets[-1]):
            part = np.asarray(slots[start : start + buckets[-1]])
            steps = self._steps[part]
            is_blank = steps == starts[part]
            estimates = table.estimates[np.where(is_blank, steps, steps - 1)]
            pixels = self._arenas.preview(part, estimates, is_blank, smallest_bucket(buckets, len(part)))
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
            labels = np.concatenate((labels, self._null_labels.take(slots[:num_guided])))
        self._steps[slots] = next_steps = steps + 1
        completes = slots[next_steps == self._ends[stage].take(slots)]
        if len(completes):
            self._stages[completes] = stage + 1
            self._steps[completes] = self._starts[stage + 1, completes]
        return StepRows(
            self._names[stage],
            bucket or smallest_bucket(self.plans.buckets[self._names[stage]], len(labels)),
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

"""Inputs of denoising steps that do not depend on the sample: one row for each step of each schedule in use."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from msf_engine.config import ModelConfig
from msf_engine.schedule import Schedule
from msf_engine.time_embedding import HostTimeEmbedding
from msf_scheduler.stage import Stage


def embed_steps(
    embed: HostTimeEmbedding, schedule: Schedule, conditioning_noise: float, told_scale: float
) -> NDArray[np.float32]:
    """Return the time embeddings (N, D) of a schedule's steps."""
    levels, scales = (np.full(len(schedule), value) for value in (conditioning_noise, told_scale))
    return embed(schedule.times, levels, schedule.u_start - schedule.u_end, scales)


class StepTable:
    """Table of one stage. Schedules differ by their number of steps, of at most N: N² / 2 rows.

    Those of a flow map differ by the scale that it is told, too; such scales are few.

    `time_embedding` (T, D), `updates` (T, 3) = a, b, c, `estimates` (T, 2) = p, q, and `in_interval` (T,): whether
    guidance acts.
    """

    def __init__(self, config: ModelConfig, stage: Stage, embed: HostTimeEmbedding) -> None:
        self._config = config
        self._stage = config.stage(stage)
        self.has_guidance = self._stage.guidance.interval is not None
        self._embed = embed
        self._offsets: dict[tuple[int, float], int] = {}
        self.time_embedding: NDArray[np.float32] = np.empty((0, self._stage.denoiser.width), np.float32)
        self.updates: NDArray[np.float32] = np.empty((0, 3), np.float32)
        self.estimates: NDArray[np.float32] = np.empty((0, 2), np.float32)
        self.in_interval = np.empty(0, bool)

    def __len__(self) -> int:
        return len(self.in_interval)

    def offset(self, num_steps: int, guidance_scale: float) -> int:
        """Return the row of a schedule's first step; the other steps follow."""
        told_scale = self._config.told_scale(guidance_scale)
        key = num_steps, told_scale
        if key not in self._offsets:
            self._offsets[key] = len(self)
            self._append(self._config.process.schedule(num_steps), told_scale)
        return self._offsets[key]

    def _append(self, schedule: Schedule, told_scale: float) -> None:
        embedding = embed_steps(self._embed, schedule, self._stage.conditioning_noise, told_scale)
        updates = schedule.updates(self._config.sampling.solver).astype(np.float32)
        self.time_embedding = np.concatenate((self.time_embedding, embedding))
        self.updates = np.concatenate((self.updates, updates))
        self.estimates = np.concatenate((self.estimates, schedule.estimates().astype(np.float32)))
        self.in_interval = np.concatenate((self.in_interval, self._stage.guidance.contains(schedule.noise_times)))

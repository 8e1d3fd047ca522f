"""Inputs of denoising steps that do not depend on the sample: one row for each step of each schedule in use."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from msf_engine.config import ModelConfig
from msf_engine.schedule import timesteps, updates
from msf_engine.time_embedding import HostTimeEmbedding
from msf_scheduler.stage import Stage


def embed_steps(
    embed: HostTimeEmbedding, times: Sequence[float], conditioning_noise: float, told_scale: float
) -> NDArray[np.float32]:
    """Return the time embeddings (N, D) of the steps along `times` (N + 1)."""
    starts, ends = np.array(times[:-1]), np.array(times[1:])
    return embed(starts, np.full(len(starts), conditioning_noise), starts - ends, np.full(len(starts), told_scale))


class StepTable:
    """Table of one stage. Schedules differ by their number of steps, of at most N: N² / 2 rows.

    Those of a flow map differ by the scale that it is told, too; such scales are few.

    `times` (T,), `time_embedding` (T, D), `updates` (T, 3) = a, b, c, and `in_interval` (T,): whether guidance acts.
    """

    def __init__(self, config: ModelConfig, stage: Stage, embed: HostTimeEmbedding) -> None:
        self._config = config
        self._guidance = config.stage(stage).guidance
        self.has_guidance = self._guidance.interval is not None
        self._embed = embed
        self._offsets: dict[tuple[int, float], int] = {}
        self.times = np.empty(0)
        self.time_embedding: NDArray[np.float32] = np.empty((0, config.stage(stage).denoiser.width), np.float32)
        self.updates: NDArray[np.float32] = np.empty((0, 3), np.float32)
        self.in_interval = np.empty(0, bool)

    def offset(self, num_steps: int, guidance_scale: float) -> int:
        """Return the row of a schedule's first step; the other steps follow."""
        told_scale = self._config.told_scale(guidance_scale)
        schedule = num_steps, told_scale
        if schedule not in self._offsets:
            self._offsets[schedule] = len(self.times)
            self._append(timesteps(num_steps, self._config.sampling.time_shift), told_scale)
        return self._offsets[schedule]

    def _append(self, times: tuple[float, ...], told_scale: float) -> None:
        starts = np.array(times[:-1])
        embedding = embed_steps(self._embed, times, self._config.conditioning_noise, told_scale)
        rows = [(update.a, update.b, update.c) for update in updates(self._config.sampling.solver, times)]
        in_interval = [self._guidance.contains(t) for t in starts]
        self.times = np.concatenate((self.times, starts))
        self.time_embedding = np.concatenate((self.time_embedding, embedding))
        self.updates = np.concatenate((self.updates, np.array(rows, np.float32)))
        self.in_interval = np.concatenate((self.in_interval, in_interval))

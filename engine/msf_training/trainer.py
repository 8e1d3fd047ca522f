"""A training loop that can be killed at any moment and goes on from its last checkpoint."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

logger = logging.getLogger(__name__)

LossFunction = Callable[[torch.Generator], Mapping[str, Tensor]]


def weights_digest(module: nn.Module) -> str:
    """SHA-256 of all weights: what was made with one network tells by it that it is another's."""
    seen = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        seen.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return seen.hexdigest()


@dataclass(frozen=True)
class LoopConfig:
    """How long and how fast. The learning rate warms up linearly and decays to 0: along a cosine, or, with `cooldown`,
    in a straight line over that last part of the iterations (warmup-stable-decay, arXiv 2404.06395). A cooldown of 0
    leaves it constant, so that a run can be judged at any iteration.
    """

    num_iterations: int
    learning_rate: float
    weight_decay: float = 0.0
    warmup_iterations: int = 100
    max_grad_norm: float = 1.0
    cooldown: float | None = None
    ema_decays: tuple[float, ...] = (0.995, 0.999)
    seed: int = 0
    checkpoint_every_s: float = 60.0
    log_every: int = 50

    def learning_rate_at(self, iteration: int) -> float:
        warmup = min(1.0, (iteration + 1) / self.warmup_iterations)
        left = 1 - iteration / self.num_iterations
        if self.cooldown is None:
            decay = (1 - math.cos(math.pi * left)) / 2
        else:
            decay = min(1.0, left / self.cooldown) if self.cooldown else 1.0
        return self.learning_rate * warmup * decay


class _Objective(nn.Module):
    """A loss function as a module, which is what DistributedDataParallel watches over."""

    def __init__(self, module: nn.Module, loss_function: LossFunction) -> None:
        super().__init__()
        self.module = module
        self.loss_function = loss_function

    def forward(self, generator: torch.Generator) -> Mapping[str, Tensor]:
        return self.loss_function(generator)


class Loop:
    """Trains `module` on `loss_function`; `averages[decay]` holds an exponential moving average of its weights
    (its parameters: a module with buffers that learn should use its own, with no decays).

    The loss function draws all its randomness from the generator that it is handed, which depends only on the seed and
    the iteration: a resumed run sees the very batches that an uninterrupted one sees. Where torch.distributed is
    initialised, each process draws its own batches and gradients are averaged; the first writes the checkpoints.
    `on_checkpoint` is called after each of them.
    """

    def __init__(
        self,
        module: nn.Module,
        config: LoopConfig,
        checkpoint: Path,
        on_checkpoint: Callable[[Loop], None] = lambda _: None,
    ) -> None:
        self.module = module
        self.on_checkpoint = on_checkpoint
        self.rank, self.world_size = 0, 1
        if distributed.is_initialized():
            self.rank, self.world_size = distributed.get_rank(), distributed.get_world_size()
        self.config = config
        self.checkpoint = checkpoint
        self.averages = {decay: deepcopy(module).requires_grad_(False).eval() for decay in config.ema_decays}
        self.optimizer = torch.optim.AdamW(
            module.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.99)
        )
        self.iteration = 0

    def run(self, loss_function: LossFunction) -> None:
        self._resume()
        if self.iteration >= self.config.num_iterations:
            return
        if self.world_size > 1:
            loss_function = DistributedDataParallel(_Objective(self.module, loss_function))
        started_at, started_from = time.monotonic(), self.iteration
        saved_at = started_at
        while self.iteration < self.config.num_iterations:
            losses = self._step(loss_function)
            now = time.monotonic()
            if self.rank == 0 and self.iteration % self.config.log_every == 0:
                self._log(losses, seconds_per_iteration=(now - started_at) / (self.iteration - started_from))
            if now - saved_at > self.config.checkpoint_every_s:
                self._save()
                saved_at = now
        self._save()

    def _step(self, loss_function: LossFunction) -> Mapping[str, Tensor]:
        draw = self.iteration * self.world_size + self.rank
        generator = torch.Generator().manual_seed((self.config.seed << 32) + draw)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate_at(self.iteration)
        losses = loss_function(generator)
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.module.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.iteration += 1
        self._update_averages()
        return losses

    @torch.no_grad()
    def _update_averages(self) -> None:
        weights: list[Tensor] = [*self.module.parameters()]
        for decay, average in self.averages.items():
            warm = min(decay, self.iteration / (self.iteration + 10))
            averaged: list[Tensor] = [*average.parameters()]
            torch._foreach_lerp_(averaged, weights, 1 - warm)

    def _log(self, losses: Mapping[str, Tensor], seconds_per_iteration: float) -> None:
        values = " ".join(f"{name} {value.item():.4f}" for name, value in losses.items())
        left_s = (self.config.num_iterations - self.iteration) * seconds_per_iteration
        logger.info(
            "%s %d/%d %s | %.2f s/it, %.0f min left",
            self.checkpoint.stem,
            self.iteration,
            self.config.num_iterations,
            values,
            seconds_per_iteration,
            left_s / 60,
        )

    def _save(self) -> None:
        if self.rank > 0:
            return
        state = {
            "iteration": self.iteration,
            "module": self.module.state_dict(),
            "averages": {str(decay): average.state_dict() for decay, average in self.averages.items()},
            "optimizer": self.optimizer.state_dict(),
        }
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.checkpoint)
        self.on_checkpoint(self)

    def _resume(self) -> None:
        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, weights_only=True, map_location="cpu")
        self.module.load_state_dict(state["module"])
        for decay, average in self.averages.items():
            average.load_state_dict(state["averages"][str(decay)])
        self.optimizer.load_state_dict(state["optimizer"])
        self.iteration = state["iteration"]
        logger.info("%s resumes at iteration %d", self.checkpoint.stem, self.iteration)

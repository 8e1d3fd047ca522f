"""Resumable training loop: a run may be killed at any moment and resumes from its last checkpoint."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Generic, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

logger = logging.getLogger(__name__)

Module = TypeVar("Module", bound=nn.Module)
LossFunction = Callable[[torch.Generator], Mapping[str, Tensor]]


class TrainerConfig(BaseModel):
    """Length and learning rate of a training.

    The rate warms up linearly, stays constant, and falls linearly to 0 over the last `cooldown` of the iterations
    (warmup-stable-decay, arXiv 2404.06395). A cooldown of 0 leaves it constant, so that a run can be evaluated at any
    iteration.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_iterations: Annotated[int, Field(gt=0)]
    learning_rate: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    warmup_iterations: Annotated[int, Field(gt=0)] = 100
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    cooldown: Annotated[float, Field(ge=0, le=1)] = 0.2
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.999  # decay of the average of the weights
    seed: int = 0
    checkpoint_every_s: Annotated[float, Field(gt=0)] = 300.0
    log_every: Annotated[int, Field(gt=0)] = 50

    def learning_rate_at(self, iteration: int) -> float:
        """Return the learning rate of an iteration, counted from 0."""
        warmup = min(1.0, (iteration + 1) / self.warmup_iterations)
        remaining = 1 - iteration / self.num_iterations
        return self.learning_rate * warmup * (min(1.0, remaining / self.cooldown) if self.cooldown else 1.0)


class _LossModule(nn.Module):
    """A loss function as a module, as DistributedDataParallel needs it."""

    def __init__(self, module: nn.Module, loss_function: LossFunction) -> None:
        super().__init__()
        self.module = module
        self.loss_function = loss_function

    def forward(self, generator: torch.Generator) -> Mapping[str, Tensor]:
        return self.loss_function(generator)


class Trainer(Generic[Module]):
    """Training of `module`; `average` is the exponential moving average of its parameters (not of its buffers).

    The loss function draws all its randomness from the generator that it gets, which depends only on the seed and the
    iteration: a resumed run sees the same batches as an uninterrupted one. Under torch.distributed each process draws
    its own batches, gradients are averaged, and the first process writes the checkpoints. `on_checkpoint` is called
    after each of them.
    """

    def __init__(
        self,
        module: Module,
        config: TrainerConfig,
        checkpoint: Path,
        on_checkpoint: Callable[[Trainer[Module]], None] = lambda _: None,
    ) -> None:
        self.module = module
        self.on_checkpoint = on_checkpoint
        self.rank, self.world_size = 0, 1
        if distributed.is_initialized():
            self.rank, self.world_size = distributed.get_rank(), distributed.get_world_size()
        self.config = config
        self.checkpoint = checkpoint
        self.average = deepcopy(module).requires_grad_(False).eval()
        self.optimizer = torch.optim.AdamW(
            module.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            betas=(0.9, 0.99),
            fused=True,
        )
        self.iteration = 0

    def run(self, loss_function: LossFunction) -> None:
        """Train from the checkpoint, if there is one, to the last iteration.

        Raises ValueError that names a checkpoint of release 0.1.0.
        """
        self._resume()
        if self.iteration >= self.config.num_iterations:
            return
        if self.world_size > 1:
            loss_function = DistributedDataParallel(_LossModule(self.module, loss_function))
        started_at, first_iteration = time.monotonic(), self.iteration
        saved_at = started_at
        while self.iteration < self.config.num_iterations:
            losses = self._step(loss_function)
            now = time.monotonic()
            if self.rank == 0 and self.iteration % self.config.log_every == 0:
                self._log(losses, seconds_per_iteration=(now - started_at) / (self.iteration - first_iteration))
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
        self._update_average()
        return losses

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.config.ema, self.iteration / (self.iteration + 10))
        averaged: list[Tensor] = [*self.average.parameters()]
        torch._foreach_lerp_(averaged, [*self.module.parameters()], 1 - decay)

    def _log(self, losses: Mapping[str, Tensor], seconds_per_iteration: float) -> None:
        values = " ".join(f"{name} {value.item():.4f}" for name, value in losses.items())
        remaining_s = (self.config.num_iterations - self.iteration) * seconds_per_iteration
        progress = f"{self.checkpoint.stem} {self.iteration}/{self.config.num_iterations}"
        logger.info("%s %s | %.2f s/it, %.0f min left", progress, values, seconds_per_iteration, remaining_s / 60)

    def _save(self) -> None:
        if self.rank > 0:
            return
        state = {
            "iteration": self.iteration,
            "module": self.module.state_dict(),
            "average": self.average.state_dict(),
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
        if "average" not in state:
            raise ValueError(f"{self.checkpoint} is a checkpoint of release 0.1.0; choose another --out")
        self.module.load_state_dict(state["module"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.iteration = state["iteration"]
        logger.info("%s resumes at iteration %d", self.checkpoint.stem, self.iteration)

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from msf_training.trainer import Loop, LoopConfig

CONFIG = LoopConfig(num_iterations=20, learning_rate=0.05, warmup_iterations=4, ema_decays=(0.5, 0.9))


class Killed(Exception):
    pass


def _train(checkpoint: Path, *, killed_at: int | None = None) -> Loop:
    torch.manual_seed(0)
    module = nn.Linear(3, 1)
    calls = 0

    def loss(generator: torch.Generator) -> Mapping[str, Tensor]:
        nonlocal calls
        calls += 1
        if calls == killed_at:
            raise Killed
        x = torch.randn(8, 3, generator=generator)
        return {"loss": (module(x) - x.sum(1, keepdim=True)).square().mean()}

    config = CONFIG if killed_at is None else LoopConfig(**{**vars(CONFIG), "checkpoint_every_s": -1.0})
    loop = Loop(module, config, checkpoint)
    loop.run(loss)
    return loop


def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    whole = _train(tmp_path / "whole.pt")
    with pytest.raises(Killed):
        _train(tmp_path / "cut.pt", killed_at=8)
    resumed = _train(tmp_path / "cut.pt")
    assert resumed.iteration == CONFIG.num_iterations
    torch.testing.assert_close(resumed.module.state_dict(), whole.module.state_dict(), rtol=0, atol=0)
    for decay, average in whole.averages.items():
        torch.testing.assert_close(resumed.averages[decay].state_dict(), average.state_dict(), rtol=0, atol=0)


def test_it_learns_and_averages_lag_behind(tmp_path: Path) -> None:
    loop = _train(tmp_path / "run.pt")
    weight = loop.module.state_dict()["weight"]
    start = _start_weight()
    assert (weight - 1).norm() < (start - 1).norm()
    averaged = {decay: average.state_dict()["weight"] for decay, average in loop.averages.items()}
    assert (averaged[0.9] - weight).norm() > (averaged[0.5] - weight).norm() > 0


def _start_weight() -> Tensor:
    torch.manual_seed(0)
    return nn.Linear(3, 1).weight.detach()


def test_the_learning_rate_warms_up_and_decays_to_nothing() -> None:
    rates = [CONFIG.learning_rate_at(iteration) for iteration in range(21)]
    assert rates[0] == pytest.approx(0.05 / 4)
    assert max(rates) == rates[3]
    assert rates[20] == pytest.approx(0, abs=1e-12)

"""The training loop resumes exactly, averages the weights, and follows its learning-rate schedule."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from msf_training.trainer import Trainer, TrainerConfig

CONFIG = TrainerConfig(num_iterations=20, learning_rate=0.05, warmup_iterations=4, cooldown=1, ema=0.9)


class Killed(Exception):
    pass


def _train(checkpoint: Path, config: TrainerConfig = CONFIG, *, killed_at: int | None = None) -> Trainer[nn.Linear]:
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

    trainer = Trainer(module, config, checkpoint)
    trainer.run(loss)
    return trainer


def test_a_killed_run_resumes_as_if_nothing_had_happened(tmp_path: Path) -> None:
    whole = _train(tmp_path / "whole.pt")
    with pytest.raises(Killed):
        _train(tmp_path / "cut.pt", CONFIG.model_copy(update={"checkpoint_every_s": 1e-9}), killed_at=8)
    resumed = _train(tmp_path / "cut.pt")
    assert resumed.iteration == CONFIG.num_iterations
    for network in ("module", "average"):
        states = (getattr(trainer, network).state_dict() for trainer in (resumed, whole))
        torch.testing.assert_close(*states, rtol=0, atol=0)


def test_a_checkpoint_of_an_older_release_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "base.pt"
    torch.save({"iteration": 5, "module": {}, "averages": {}, "optimizer": {}}, file)
    with pytest.raises(ValueError, match=re.escape(f"{file} is a checkpoint of release 0.1.0; choose another --out")):
        _train(file)


@pytest.mark.parametrize("field", ["checkpoint_every_s", "log_every"])
def test_an_interval_of_zero_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        TrainerConfig(num_iterations=1, learning_rate=1.0, **{field: 0})


def test_training_learns_and_its_average_lags_behind(tmp_path: Path) -> None:
    weights = {
        decay: _train(tmp_path / f"{decay}.pt", CONFIG.model_copy(update={"ema": decay})) for decay in (0.5, 0.9)
    }
    weight = weights[0.5].module.weight
    torch.manual_seed(0)
    assert (weight - 1).norm() < (nn.Linear(3, 1).weight - 1).norm()
    distances = [(weights[decay].average.weight - weight).norm() for decay in (0.9, 0.5)]
    assert distances[0] > distances[1] > 0


def test_the_learning_rate_warms_up_and_cools_down_to_nothing() -> None:
    rates = [CONFIG.learning_rate_at(iteration) for iteration in range(21)]
    assert rates[0] == pytest.approx(0.05 / 4)
    assert max(rates) == rates[3]
    assert rates[20] == 0


def test_the_learning_rate_is_constant_up_to_the_cooldown() -> None:
    config = TrainerConfig(num_iterations=1000, learning_rate=1.0, cooldown=0.2)
    assert [config.learning_rate_at(i) for i in (0, 99, 500, 800, 900)] == pytest.approx([0.01, 1, 1, 1, 0.5])
    assert config.learning_rate_at(999) == pytest.approx(0.005)
    constant = TrainerConfig(num_iterations=1000, learning_rate=1.0, cooldown=0)
    assert constant.learning_rate_at(999) == 1.0

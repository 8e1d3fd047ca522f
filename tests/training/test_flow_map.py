"""Flow maps learn jumps along the trajectories of their teacher."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from msf_engine.denoiser import Denoiser
from msf_engine.eager_network import eager_network, host_time_embedding
from msf_engine.sampling import sample, stage_trajectory
from msf_scheduler.stage import Stage
from msf_training.flow_map import HUBER_SCALE, FlowMapObjective, draw_jumps, flow_map_loss, make_flow_map
from msf_training.trajectories import BATCH_SIZE, Trajectories, TrajectoryMaker, draw_times
from tests.models import tiny_config, tiny_model

OBJECTIVE = FlowMapObjective(batch_size=512, num_steps=2, cond_level=0.1)


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory) -> TrajectoryMaker:
    return TrajectoryMaker(tiny_model(), tmp_path_factory.mktemp("trajectories"), num_steps=4, max_guidance_scale=2.0)


@pytest.mark.parametrize("stage", [Stage.BASE, Stage.RESIDUAL])
def test_a_flow_map_begins_as_its_teacher_whatever_it_is_told(stage: Stage) -> None:
    teacher = tiny_model().denoiser(stage)
    flow_map = make_flow_map(teacher)
    generator = torch.Generator().manual_seed(0)
    config = teacher.config
    x, cond = (torch.randn(6, channels, 2, 2, generator=generator) for channels in (config.in_channels, 2))
    t, r, scale = torch.rand(3, 6, generator=generator)
    labels, level, bases = torch.arange(6) % 4, torch.full((6,), 0.1), cond if config.cond_channels else None
    with torch.no_grad():
        expected = teacher(x, teacher.time(t, level), labels, bases)
        actual = flow_map(x, flow_map.time(t, level, t * (1 - r), 1 + scale), labels, bases)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_trajectories_are_those_of_the_sampler(maker: TrajectoryMaker) -> None:
    """Base and residual of the file whose times are regular, of a sample with the default solver and its own scale."""
    number = next(n for n in range(20) if draw_times(4, torch.Generator().manual_seed(n))[1] == 0.75)
    for stage in (Stage.BASE, Stage.RESIDUAL):
        trajectories = maker.make(stage, (number + 1) * BATCH_SIZE)
        row = number * BATCH_SIZE + 3
        teacher = maker.teacher.denoiser(stage)
        if trajectories.times[row, 1] != 0.75:  # the residual's times are drawn for themselves
            continue
        path = stage_trajectory(
            tiny_config(), stage, host_time_embedding(teacher), 4, trajectories.guidance_scales[row].item()
        )
        cond = trajectories.cond[[row]].numpy() if teacher.config.cond_channels else None
        noise, labels = trajectories.states[[row], 0].numpy(), trajectories.labels[[row]].numpy()
        end = sample(eager_network(teacher), path, noise, labels, teacher.null_label, cond)
        np.testing.assert_allclose(trajectories.states[row, -1].numpy(), end[0], rtol=1e-4, atol=1e-4)


def test_residuals_are_made_for_the_teachers_bases(maker: TrajectoryMaker) -> None:
    """The condition is the base, with noise at the level of the config."""
    base, residual = (maker.make(stage, 4 * BATCH_SIZE) for stage in (Stage.BASE, Stage.RESIDUAL))
    assert torch.equal(base.labels, residual.labels)
    assert torch.equal(base.guidance_scales, residual.guidance_scales)
    level = tiny_config().conditioning_noise
    noise = (residual.cond - (1 - level) * base.states[:, -1]) / level
    assert noise.mean().item() == pytest.approx(0, abs=0.1)
    assert noise.std().item() == pytest.approx(1, abs=0.1)


def test_files_are_not_made_twice(maker: TrajectoryMaker) -> None:
    maker.make(Stage.BASE, BATCH_SIZE)
    file = maker.folder / "base-00000.pt"
    written_at = file.stat().st_mtime_ns
    assert len(maker.make(Stage.BASE, 2 * BATCH_SIZE - 1).labels) == 2 * BATCH_SIZE
    assert file.stat().st_mtime_ns == written_at


def test_jumps_are_steps_of_schedules_and_half_of_them_of_the_default() -> None:
    starts, ends = draw_jumps(8, FlowMapObjective(20_000, 2, 0.0), torch.Generator().manual_seed(0))
    lengths = ends - starts
    assert set(zip(starts.tolist(), ends.tolist(), strict=True)) == {
        (start, start + length) for length in (1, 2, 4, 8) for start in range(0, 8, length)
    }
    shares = torch.bincount(lengths).double() / len(lengths)
    assert shares[[1, 2, 4, 8]].tolist() == pytest.approx([0.125, 0.125, 0.625, 0.125], abs=0.02)


def _straight(velocity: Tensor, num_steps: int) -> Trajectories:
    """Return trajectories (B, N + 1, C, h, w) of constant velocity."""
    count = len(velocity)
    times = torch.linspace(1, 0, num_steps + 1).expand(count, -1)
    states = torch.randn(velocity.shape, generator=torch.Generator().manual_seed(1))[:, None]
    states = states + (times - 1)[..., None, None, None] * velocity[:, None]
    return Trajectories(states, times, torch.zeros(count, dtype=torch.long), torch.ones(count), velocity[:, :0])


def test_the_loss_of_predicting_nothing_is_the_size_of_the_velocity() -> None:
    """An untrained denoiser predicts 0. On a straight line every jump has the same average velocity."""
    trajectories = _straight(torch.full((8, 2, 2, 2), 0.7), num_steps=4)
    flow_map = Denoiser(tiny_config().stages[0].denoiser, is_flow_map=True)
    losses = flow_map_loss(flow_map, trajectories, OBJECTIVE, torch.Generator().manual_seed(0))
    assert losses["error"].item() == pytest.approx(0.49, rel=1e-4)
    assert losses["loss"].item() == pytest.approx((0.49 + HUBER_SCALE**2) ** 0.5 - HUBER_SCALE, rel=1e-4)


def test_an_exact_flow_map_has_no_loss() -> None:
    """With no weights but the last bias, the network predicts one number per channel, at any time and scale."""
    velocity = torch.tensor([0.7, -1.2])
    flow_map = Denoiser(tiny_config().stages[0].denoiser, is_flow_map=True)
    flow_map.out.bias.data.copy_(velocity)
    trajectories = _straight(velocity[:, None, None].expand(8, 2, 2, 2), num_steps=4)
    losses = flow_map_loss(flow_map, trajectories, OBJECTIVE, torch.Generator().manual_seed(0))
    assert losses["loss"].item() == pytest.approx(0, abs=1e-6)


def test_the_loss_trains_every_weight_of_the_flow_map_and_not_its_teacher(maker: TrajectoryMaker) -> None:
    teacher = maker.teacher.denoiser(Stage.RESIDUAL)
    maker.make(Stage.BASE, BATCH_SIZE)
    flow_map = make_flow_map(teacher)
    trajectories = maker.make(Stage.RESIDUAL, BATCH_SIZE)
    loss = flow_map_loss(flow_map, trajectories, OBJECTIVE, torch.Generator().manual_seed(0))["loss"]
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in flow_map.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_shifted_times_are_drawn_beside_regular_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [draw_times(4, generator) for _ in range(400)]
    middles = torch.tensor([times[2] for times in drawn])
    assert all(times[0] == 1 and times[-1] == 0 for times in drawn)
    assert (middles == 0.5).double().mean().item() == pytest.approx(0.5, abs=0.1)
    assert 1 / 3 - 1e-6 <= middles.min().item() < 0.36
    assert 0.64 < middles.max().item() <= 2 / 3 + 1e-6


def test_trajectories_depend_on_the_number_of_their_file_alone(tmp_path: Path, maker: TrajectoryMaker) -> None:
    again = TrajectoryMaker(maker.teacher, tmp_path, maker.num_steps, maker.max_guidance_scale)
    first, second = (each.make(Stage.BASE, BATCH_SIZE) for each in (maker, again))
    assert torch.equal(first.states, second.states)
    assert not torch.equal(maker.make(Stage.BASE, 2 * BATCH_SIZE).states[BATCH_SIZE:], first.states)

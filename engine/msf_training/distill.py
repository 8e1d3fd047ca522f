"""Distillation: a model of the repository becomes one of flow maps, which makes images in few unguided steps.

No images are needed: the teacher's own trajectories are the data. Everything in `out` is resumed from.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from msf_engine.config import ModelConfig
from msf_engine.denoiser import Denoiser
from msf_engine.eager_network import eager_network, host_time_embedding
from msf_engine.factorization import compose, up
from msf_engine.model import MsfModel, Normalizer
from msf_engine.repository import ModelVersion, next_version, save_version
from msf_engine.sampling import sample, stage_trajectory
from msf_scheduler.stage import Stage
from msf_training.dataset import to_uint8
from msf_training.distillation_recipe import DistillationRecipe
from msf_training.flow_map import FlowMapObjective, flow_map_loss, make_flow_map
from msf_training.sample_grids import COLUMNS, NUM_IMAGES, save_grid
from msf_training.torchrun import first_process_first, is_first_process, joined_processes
from msf_training.trainer import Trainer
from msf_training.trajectories import Trajectories, TrajectoryMaker


def distill(
    recipe: DistillationRecipe, teacher: ModelVersion, out: Path, repository: Path, *, name: str, device: torch.device
) -> Path | None:
    """Train a flow map for each stage, and write them as the next version of the model `name`.

    Returns the version's folder in the first process, None in the others. Raises ValueError and ModelRepositoryError
    about teacher, `out` and repository before any training.
    """
    if teacher.config.is_flow_map:
        raise ValueError(f"{teacher} is made of flow maps already")
    with joined_processes(device) as own_device:
        version = next_version(repository, name, teacher.labels)
        with first_process_first():
            _check_out(recipe, teacher, out)
        run = _Run(recipe, teacher.load().to(own_device), out)
        flow_maps = {stage: run.train(stage) for stage in run.config.denoising_stages}
        if not is_first_process():
            return None
        is_kept = (repository / name / teacher.version).resolve() == teacher.folder.resolve()
        model = MsfModel(run.config.model_copy(update={"teacher": teacher.version if is_kept else None}))
        model.autoencoder.load_state_dict(run.teacher.autoencoder.state_dict())
        for stage, flow_map in flow_maps.items():
            model.denoiser(stage).load_state_dict(flow_map.state_dict())
        return save_version(repository, name, version, model, teacher.labels)


@dataclass(frozen=True)
class _Run:
    recipe: DistillationRecipe
    teacher: MsfModel
    out: Path

    @property
    def config(self) -> ModelConfig:
        return self.recipe.config(self.teacher.config)

    def train(self, stage: Stage) -> Denoiser:
        """Train a stage's flow map, from its checkpoint if there is one, and return its average."""
        recipe = self.recipe.stages[stage]
        teacher = self.teacher.denoiser(stage)
        maker = TrajectoryMaker(
            self.teacher, self.out / "trajectories", self.recipe.teacher_num_steps, self.recipe.max_guidance_scale
        )
        trajectories = maker.make(stage, self.recipe.num_trajectories)
        level = self.config.stage(stage).conditioning_noise
        objective = FlowMapObjective(recipe.fit.batch_size, recipe.num_steps, level)
        flow_map = make_flow_map(teacher).to(next(teacher.parameters()).device)

        def on_checkpoint(trainer: Trainer[Denoiser]) -> None:
            file = self.out / "samples" / f"{stage}-{trainer.iteration:06d}.png"
            self._save_samples(file, stage, trainer.average, trajectories)

        trainer = Trainer(flow_map, recipe.fit, self.out / f"{stage}.pt", on_checkpoint)
        trainer.run(lambda generator: flow_map_loss(flow_map, trajectories, objective, generator))
        return trainer.average

    @torch.no_grad()
    def _save_samples(self, file: Path, stage: Stage, flow_map: Denoiser, trajectories: Trajectories) -> None:
        """Write images of the teacher, and below them those of the flow map: the same noise, labels and bases."""
        embed, scale = host_time_embedding(flow_map), self.config.sampling.default_guidance_scale
        path = stage_trajectory(self.config, stage, embed, self.recipe.stages[stage].num_steps, scale)
        states, cond = trajectories.states[:NUM_IMAGES], trajectories.cond[:NUM_IMAGES]
        labels = trajectories.labels[:NUM_IMAGES].numpy()
        bases = cond.numpy() if cond.shape[1] else None
        ends = sample(eager_network(flow_map), path, states[:, 0].numpy(), labels, flow_map.null_label, bases)
        both = torch.cat((states[:, -1], torch.from_numpy(ends)))
        save_grid(file, to_uint8(self._decode(stage, both, cond.repeat(2, 1, 1, 1))))

    def _decode(self, stage: Stage, latents: Tensor, cond: Tensor) -> Tensor:
        """Decode bases (N, C, h, w) alone, or residuals (N, 3C, h, w) with the bases that they were made for."""
        first, last = (Normalizer(self.config.stages[position].statistics) for position in (0, -1))
        match stage:
            case Stage.RESIDUAL:
                z = compose(first.restore(cond), last.restore(latents))
            case Stage.BASE:
                z = up(first.restore(latents))
            case _:
                z = first.restore(latents)
        autoencoder = self.teacher.autoencoder
        device = next(autoencoder.parameters()).device
        return torch.cat([autoencoder.decode(part.to(device)).cpu() for part in torch.split(z, COLUMNS)])


def _check_out(recipe: DistillationRecipe, teacher: ModelVersion, out: Path) -> None:
    """Raise ValueError if `out` holds the trajectories of another teacher, or made in another way."""
    made_from = {
        "teacher": teacher.digest,
        "teacher_num_steps": recipe.teacher_num_steps,
        "max_guidance_scale": recipe.max_guidance_scale,
    }
    file = out / "made_from.json"
    out.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        file.write_text(json.dumps(made_from, indent=2) + "\n")
    elif json.loads(file.read_text()) != made_from:
        raise ValueError(f"{out} holds trajectories of another teacher, number of steps or scale; choose another --out")

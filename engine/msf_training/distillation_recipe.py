"""Recipes of `msf distill`: how a model becomes one of flow maps, in one TOML file."""

from __future__ import annotations

from importlib.resources import files
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from msf_engine.config import GuidanceConfig, ModelConfig, StageConfig
from msf_engine.diffusion_process import FlowProcess
from msf_scheduler.stage import Stage
from msf_training.recipe import Fit, PositiveInt, read_toml, stages_of, toml_names

_SHIPPED = files("msf_training") / "distillation_recipes"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FlowMapRecipe(_Part):
    """Default number of steps and training of one stage's flow map."""

    num_steps: PositiveInt
    fit: Fit


class DistillationRecipe(_Part):
    """A whole recipe. The teacher makes `num_trajectories` in `teacher_num_steps` steps for each stage.

    Its guidance scales, and those of requests later on, go from 1 to `max_guidance_scale`. The defaults of the teacher
    are kept where `guidance_scale` and `time_shift` are left out.
    """

    teacher_num_steps: PositiveInt
    num_trajectories: PositiveInt
    max_guidance_scale: Annotated[float, Field(ge=1)]
    guidance_scale: Annotated[float, Field(ge=1)] | None = None
    time_shift: Annotated[float, Field(gt=0)] | None = None
    base: FlowMapRecipe | None = None
    residual: FlowMapRecipe | None = None
    denoise: FlowMapRecipe | None = None

    @property
    def stages(self) -> dict[Stage, FlowMapRecipe]:
        """Recipes of the denoising stages, in order."""
        return stages_of({Stage.BASE: self.base, Stage.RESIDUAL: self.residual, Stage.DENOISE: self.denoise})

    @model_validator(mode="after")
    def _steps_divide_the_teachers(self) -> Self:
        for name, stage in self.stages.items():
            if self.teacher_num_steps % stage.num_steps:
                raise ValueError(
                    f"{name}.num_steps {stage.num_steps} must divide teacher_num_steps {self.teacher_num_steps}"
                )
        if self.guidance_scale is not None and self.guidance_scale > self.max_guidance_scale:
            raise ValueError(
                f"guidance_scale {self.guidance_scale} must not exceed max_guidance_scale {self.max_guidance_scale}"
            )
        return self

    def config(self, teacher: ModelConfig) -> ModelConfig:
        """Return the config of the flow maps of a teacher. Raises ValueError for one of another kind."""
        if tuple(self.stages) != teacher.denoising_stages:
            theirs, ours = ", ".join(teacher.denoising_stages), ", ".join(self.stages)
            raise ValueError(f"the teacher's stages are {theirs}; the recipe has {ours}")
        process = teacher.process
        if not isinstance(process, FlowProcess) or process.data_at != 0:
            raise ValueError("the teacher is no flow with data at time 0, of which alone flow maps can be made")
        sampling = {
            **teacher.sampling.model_dump(),
            "solver": "flow_map",
            "max_guidance_scale": self.max_guidance_scale,
            "max_num_steps": 2 * sum(stage.num_steps for stage in self.stages.values()),
            "default_guidance_scale": min(teacher.sampling.default_guidance_scale, self.max_guidance_scale),
        }
        if self.guidance_scale is not None:
            sampling["default_guidance_scale"] = self.guidance_scale
        changes: dict[str, object] = {
            "stages": [self._stage_config(stage).model_dump() for stage in teacher.stages],
            "process": {**process.model_dump(), "shift": self.time_shift or process.shift},
            "sampling": sampling,
        }
        return ModelConfig.model_validate({**teacher.model_dump(), **changes})

    def _stage_config(self, stage: StageConfig) -> StageConfig:
        num_steps = self.stages[stage.name].num_steps
        return stage.model_copy(update={"default_num_steps": num_steps, "guidance": GuidanceConfig(interval=None)})


def read_distillation_recipe(name_or_file: str) -> DistillationRecipe:
    """Read a shipped recipe by name, or a TOML file. Raises ValueError that names the field, or lists the recipes."""
    return read_toml(DistillationRecipe, _SHIPPED, name_or_file)


def shipped_distillation_recipes() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return toml_names(_SHIPPED)

"""Recipes of `msf distill`: how a model becomes one of flow maps, in one TOML file."""

from __future__ import annotations

from importlib.resources import files
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from msf_engine.config import GuidanceConfig, ModelConfig, StageConfig
from msf_scheduler.stage import Stage
from msf_training.recipe import Fit, PositiveInt, read_toml, toml_names

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
    base: FlowMapRecipe
    residual: FlowMapRecipe

    @model_validator(mode="after")
    def _steps_divide_the_teachers(self) -> Self:
        for name, stage in (("base", self.base), ("residual", self.residual)):
            if self.teacher_num_steps % stage.num_steps:
                raise ValueError(
                    f"{name}.num_steps {stage.num_steps} must divide teacher_num_steps {self.teacher_num_steps}"
                )
        if self.guidance_scale is not None and self.guidance_scale > self.max_guidance_scale:
            raise ValueError(
                f"guidance_scale {self.guidance_scale} must not exceed max_guidance_scale {self.max_guidance_scale}"
            )
        return self

    def stage(self, stage: Stage) -> FlowMapRecipe:
        """Return the recipe of a denoising stage."""
        return {Stage.BASE: self.base, Stage.RESIDUAL: self.residual}[stage]

    def config(self, teacher: ModelConfig) -> ModelConfig:
        """Return the config of the flow maps of a teacher."""
        sampling = {
            **teacher.sampling.model_dump(),
            "solver": "flow_map",
            "max_guidance_scale": self.max_guidance_scale,
            "max_num_steps": 2 * self.teacher_num_steps,
            "default_guidance_scale": min(teacher.sampling.default_guidance_scale, self.max_guidance_scale),
        }
        if self.guidance_scale is not None:
            sampling["default_guidance_scale"] = self.guidance_scale
        if self.time_shift is not None:
            sampling["time_shift"] = self.time_shift
        stages = {stage: self._stage_config(teacher, stage).model_dump() for stage in (Stage.BASE, Stage.RESIDUAL)}
        return ModelConfig.model_validate({**teacher.model_dump(), **stages, "sampling": sampling})

    def _stage_config(self, teacher: ModelConfig, stage: Stage) -> StageConfig:
        changes = {"default_num_steps": self.stage(stage).num_steps, "guidance": GuidanceConfig(interval=None)}
        return teacher.stage(stage).model_copy(update=changes)


def read_distillation_recipe(name_or_file: str) -> DistillationRecipe:
    """Read a shipped recipe by name, or a TOML file. Raises ValueError that names the field, or lists the recipes."""
    return read_toml(DistillationRecipe, _SHIPPED, name_or_file)


def shipped_distillation_recipes() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return toml_names(_SHIPPED)

"""Description of a model version that a worker registers for the servers."""

from __future__ import annotations

from msf_engine.repository import ModelVersion
from msf_scheduler.jobs import FastestTimes, ModelInfo
from msf_scheduler.stage import Stage
from msf_scheduler.step_costs import StepCosts


def model_info(model: ModelVersion, costs: StepCosts, fingerprint: str, strict_cost: float | None) -> ModelInfo:
    """Describe a model version, including the fastest steps measured so far."""
    config = model.config
    measured = [cost for cost in costs if cost.least_s]
    steps = [cost for cost in measured if cost.stage is not Stage.DECODE]
    decodes = [cost for cost in measured if cost.stage is Stage.DECODE]
    return ModelInfo(
        name=model.name,
        version=model.version,
        labels=model.labels,
        image_size=config.image.size,
        image_channels=config.image.channels,
        default_num_steps=config.default_num_steps,
        min_num_steps=len(config.stages),
        max_num_steps=config.sampling.max_num_steps,
        default_guidance_scale=config.sampling.default_guidance_scale,
        max_guidance_scale=config.sampling.max_guidance_scale,
        takes_negative=not config.is_flow_map,
        teacher=config.teacher,
        description=config.description,
        created=model.created,
        least=FastestTimes(
            step_s=min((cost.least_s for cost in steps), default=0.0),
            sample_step_s=min((cost.least_s / cost.bucket for cost in steps), default=0.0),
            decode_s=min((cost.least_s for cost in decodes), default=0.0),
        ),
        fingerprint=fingerprint,
        strict_cost=strict_cost,
    )

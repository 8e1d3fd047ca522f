"""Choice of the version that answers a request: the one that its model stands for, or that version's teacher."""

from __future__ import annotations

from msf_scheduler.jobs import ModelInfo
from msf_server.catalog import Catalog
from msf_server.schemas.images import ImageRequest, Quality

TEACHERS_QUALITIES: frozenset[Quality] = frozenset(("high", "hd", "xhigh", "max"))


async def choose_model(body: ImageRequest, catalog: Catalog, routing_key: str) -> ModelInfo:
    """Return the version that `body.model` stands for, or its teacher for what few steps cannot do.

    A version that is asked for by its number answers itself. Raises as `Catalog.find`.
    """
    model = await catalog.find(body.model, routing_key)
    if body.model == f"{model.name}:{model.version}" or not _asks_for_more(body, model):
        return model
    return catalog.teacher_of(model) or model


def _asks_for_more(body: ImageRequest, model: ModelInfo) -> bool:
    """Return whether a request has a quality or a value that a distilled version was not made for."""
    num_steps = max(body.num_steps or 0, body.num_inference_steps or 0)
    scale = max(body.guidance_scale or 0, body.true_cfg_scale or 0, body.cfg_scale or 0)
    return (
        body.quality in TEACHERS_QUALITIES
        or num_steps > model.max_num_steps
        or scale > model.max_guidance_scale
        or (bool(body.negative_prompt) and not model.takes_negative)
    )

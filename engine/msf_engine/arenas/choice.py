"""Choice of the arenas that suit a model's plans."""

from __future__ import annotations

from msf_engine.arenas import Arenas
from msf_engine.arenas.host import HostArenas
from msf_engine.device_plan import DevicePlan
from msf_engine.model_plans import ModelPlans


def make_arenas(plans: ModelPlans, capacity: int) -> Arenas:
    """Return arenas on the device of plans that take tensors there, else in the host's memory. Raises PlanError."""
    if not all(isinstance(plan, DevicePlan) for plan in plans.by_stage.values()):
        return HostArenas(plans, capacity)
    from msf_engine.arenas.device import DeviceArenas  # imports torch

    return DeviceArenas(plans, capacity)

"""The engine's exception tree."""

INSTALL = "Install it: pip install 'msf-serve[worker]'"  # ends errors that name a missing package


class EngineError(Exception):
    """Base class of the engine's errors."""


class ModelRepositoryError(EngineError):
    """A model repository, model, version or file is missing, damaged or foreign."""


class PlanError(EngineError):
    """A plan cannot be built, loaded or used."""


class BackendUnavailable(EngineError):
    """A backend's libraries cannot be loaded on this machine."""


class PlanRejected(PlanError):
    """A plan failed its validation."""


class CheckpointError(EngineError):
    """A checkpoint of another project is damaged, or is not of a network that can be imported."""

"""The engine's exception tree."""


class EngineError(Exception):
    """Base of everything that the engine raises on purpose."""


class ModelRepositoryError(EngineError):
    """A model repository, model, version or file is missing, damaged or foreign."""


class PlanError(EngineError):
    """A plan cannot be built, loaded or trusted."""


class BackendUnavailable(EngineError):
    """A backend's libraries cannot be loaded on this machine."""


class PlanRejected(PlanError):
    """A plan's answers are too far from the reference's."""

"""Options of a command, one for each setting, generated from the settings' fields and shown in groups."""

from __future__ import annotations

import types
from collections import defaultdict
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import annotated_types
import click
from pydantic.fields import FieldInfo

from msf_cli.settings import SECRETS, ProcessSettings, Settings, WorkerProcessSettings, flag_of, variable_of

GROUPS = {
    "HTTP server": ("host", "port", "grpc_port", "metrics_port", "cors_origins", "api_keys_file", "drain_timeout_s"),
    "Jobs": (
        *("redis_url", "redis_password_file", "data_dir"),
        *("max_queued_samples", "max_sample_steps", "max_stored_jobs", "result_ttl_s", "tenant_weights"),
    ),
    "Webhooks": ("webhook_secret", "webhook_networks", "webhook_ports", "max_pending_webhooks"),
    "Workers": ("workers", "threads", "slots", "lease_s", "step_timeout_s", "batching", "batch_size", "batch_delay_s"),
    "Models and plans": (
        *("model_repo", "model_control_mode", "cache_dir", "plan_cache_bytes"),
        *("backend", "precision", "buckets"),
    ),
    "Logs, metrics and traces": ("log_level", "log_format", "worker_metrics_port", "trace_dir", "otlp_endpoint"),
}
HELP_WIDTH = 120
WITHOUT_FLAG = ("webhook_secret",)  # other users see a process's arguments
_METAVARS = {int: "INTEGER", float: "NUMBER", Path: "PATH", str: "TEXT", dict: "JSON", tuple: "LIST"}


class SettingsCommand(click.Command):
    """Command with an option for every setting of `kind`; the callback gets those given as `flags`."""

    kind: type[ProcessSettings]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.context_settings = {"max_content_width": HELP_WIDTH}
        self.params += [_option(name, field) for name, field in _shown(self.kind) if name not in WITHOUT_FLAG]

    def invoke(self, ctx: click.Context) -> Any:
        settings = {name: ctx.params.pop(name) for name in self.kind.model_fields if name in ctx.params}
        ctx.params["flags"] = {name: text for name, text in settings.items() if text is not None}
        return super().invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
        for group, names in GROUPS.items():
            rows[group] = [_row(name, field) for name, field in _shown(self.kind) if name in names]
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and param.name not in self.kind.model_fields:
                rows["Other"].append(record)
        for group in filter(rows.get, rows):
            with formatter.section(group):
                formatter.write_dl(rows[group])


class ServeCommand(SettingsCommand):
    """`msf serve`."""

    kind = Settings


class WorkerCommand(SettingsCommand):
    """`msf worker`."""

    kind = WorkerProcessSettings


def _shown(kind: type[ProcessSettings]) -> Iterator[tuple[str, FieldInfo]]:
    """Yield the settings of `kind` that are for users, in the order of the groups."""
    for name in chain.from_iterable(GROUPS.values()):
        if name in kind.model_fields:
            yield name, kind.model_fields[name]


def _option(name: str, field: FieldInfo) -> click.Option:
    return click.Option([flag_of(name)], metavar=_metavar(field), help=field.description)


def _row(name: str, field: FieldInfo) -> tuple[str, str]:
    description = (field.description or "").partition("; default: ")
    default = description[2] or _default_text(name, field)
    details = [variable_of(name), *_bounds(field), *([f"default: {default}"] if default else [])]
    flag = f"{flag_of(name)} {_metavar(field)}" if name not in WITHOUT_FLAG else variable_of(name)
    return flag, f"{description[0]}  [{'; '.join(details)}]"


def _default_text(name: str, field: FieldInfo) -> str:
    if name in SECRETS or field.default is None:
        return ""
    default = field.get_default(call_default_factory=True)
    if default in ((), {}):
        return "none"
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return f"{default:g}" if isinstance(default, float) else str(default)


def _choices(annotation: Any) -> tuple[str, ...]:
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(chain.from_iterable(map(_choices, get_args(annotation))))
    return ()


def _metavar(field: FieldInfo) -> str:
    if choices := _choices(field.annotation):
        return f"[{'|'.join(choices)}]"
    annotation: Any = field.annotation
    kinds = (get_origin(kind) or kind for kind in (annotation, *get_args(annotation)))
    return next(_METAVARS[kind] for kind in kinds if kind in _METAVARS)


def _bounds(field: FieldInfo) -> list[str]:
    """Return the bounds of a number, if the field is one."""
    lowest, highest = "", ""
    for bound in field.metadata:
        match bound:
            case annotated_types.Ge():
                lowest = f"{bound.ge:.16g}"
            case annotated_types.Gt():
                lowest = f"above {bound.gt:.16g}"
            case annotated_types.Le():
                highest = f" to {bound.le:.16g}"
    return [lowest + highest] if lowest else []

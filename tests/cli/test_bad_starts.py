"""A command that cannot start prints one line with the reason, exits with a status above 0 and without a traceback."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from click import ClickException
from click.testing import CliRunner, Result

from msf_cli.http_server import listen
from msf_cli.main import main
from msf_scheduler.embedded_valkey import EmbeddedValkey


def start(command: str, settings: Mapping[str, str]) -> Result:
    return CliRunner().invoke(main, [command], env=settings)


def error_line(result: Result) -> str:
    """Return the one line with the reason."""
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2
    [line] = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    return line


@pytest.fixture
def taken_port() -> Iterator[str]:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield str(other.getsockname()[1])


def test_a_port_in_use(settings: dict[str, str], taken_port: str) -> None:
    error = error_line(start("serve", settings | {"MSF_PORT": taken_port}))
    assert f"MSF_PORT={taken_port}" in error
    assert "in use" in error


def test_a_port_that_another_server_just_bound() -> None:
    with listen("127.0.0.1", 0) as first, pytest.raises(ClickException, match="in use"):
        listen("127.0.0.1", first.getsockname()[1])


@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [
        ("MSF_PORT", "abc", "valid integer"),
        ("MSF_PORT", "70000", "65535"),
        ("MSF_BACKEND", "nope", "'eager', 'inductor', 'openvino', 'tensorrt' or 'noop'"),
        ("MSF_PRECISION", "fp8", "'fp32', 'bf16' or 'fp16'"),
        ("MSF_SLOTS", "0", "greater than or equal to 1"),
        ("MSF_LEASE_S", "0.1", "greater than or equal to 1"),
        ("MSF_DRAIN_TIMEOUT_S", "soon", "valid number"),
        ("MSF_METRICS_PORT", "70000", "65535"),
        ("MSF_CORS_ORIGINS", "studio.example", "match pattern"),
        ("MSF_CORS_ORIGINS", "*", "match pattern"),
        ("MSF_API_KEYS_FILE", "/no/such/keys", "cannot be read: No such file"),
        ("MSF_LOG_LEVEL", "loud", "'debug', 'info', 'warning' or 'error'"),
        ("MSF_MODEL_REPO", "/no/such/folder", "not a folder"),
        ("MSF_DATA_DIR", "/dev/null", "exists"),
        ("MSF_DATA_DIR", "/dev/null/x", "ot a directory"),
    ],
)
def test_a_setting_out_of_range(settings: dict[str, str], variable: str, value: str, allowed: str) -> None:
    error = error_line(start("serve", settings | {variable: value}))
    assert f"{variable}=" in error
    assert value in error
    assert allowed in error


@pytest.mark.parametrize("url", ["localhost:6379", "http://host/", "redis://:s3cret@host:port"])
@pytest.mark.parametrize("command", ["serve", "worker"])
def test_a_malformed_redis_url(settings: dict[str, str], command: str, url: str, no_title: None) -> None:
    error = error_line(start(command, settings | {"MSF_REDIS_URL": url}))
    assert "MSF_REDIS_URL: " in error
    assert "s3cret" not in error


def test_an_unreachable_redis(settings: dict[str, str], unreachable: str) -> None:
    error = error_line(start("serve", settings | {"MSF_REDIS_URL": unreachable}))
    assert "MSF_REDIS_URL: Redis at 127.0.0.1:" in error
    assert "s3cret" not in error


def test_a_worker_without_a_reachable_redis(
    settings: dict[str, str], unreachable: str, no_title: None, caplog: pytest.LogCaptureFixture
) -> None:
    result = start("worker", settings | {"MSF_REDIS_URL": unreachable})
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    assert caplog.messages[-1].startswith("MSF_REDIS_URL: Redis at 127.0.0.1:")
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize("variable", ["MSF_METRICS_PORT", "MSF_GRPC_PORT"])
def test_another_port_in_use(settings: dict[str, str], taken_port: str, variable: str) -> None:
    assert f"{variable}={taken_port}: cannot listen" in error_line(start("serve", settings | {variable: taken_port}))


def test_a_worker_without_redis(settings: dict[str, str], no_title: None) -> None:
    assert "MSF_REDIS_URL is not set" in error_line(start("worker", settings))
    assert "MSF_REDIS_URL is not set" in error_line(start("worker", settings | {"MSF_REDIS_URL": ""}))


def test_a_worker_metrics_port_in_use(
    valkey: EmbeddedValkey,
    settings: dict[str, str],
    taken_port: str,
    no_title: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    result = start("worker", settings | {"MSF_REDIS_URL": valkey.url, "MSF_WORKER_METRICS_PORT": taken_port})
    assert isinstance(result.exception, SystemExit)
    assert result.exit_code == 2
    assert caplog.messages[-1].startswith(f"MSF_WORKER_METRICS_PORT={taken_port}: cannot listen")


@pytest.mark.parametrize("command", ["serve", "models", "compile"])
def test_a_repository_without_models(settings: dict[str, str], tmp_path: Path, command: str) -> None:
    missing = str(tmp_path / "missing")
    assert missing in error_line(start(command, settings | {"MSF_MODEL_REPO": missing}))
    assert "has no model" in error_line(start(command, settings | {"MSF_MODEL_REPO": str(tmp_path)}))


@pytest.mark.parametrize("command", ["models", "compile"])
def test_a_damaged_weight_file_is_named(settings: dict[str, str], damaged: Path, command: str) -> None:
    error = error_line(start(command, settings | {"MSF_MODEL_REPO": str(damaged.parents[2])}))
    assert f"{damaged} is damaged" in error


@pytest.fixture
def unreachable() -> str:
    """Return the URL of a port that nothing listens on."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        return f"redis://:s3cret@127.0.0.1:{other.getsockname()[1]}/0"

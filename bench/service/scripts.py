"""Cost of every Lua script over the numbers that callers and operators can raise.

    python -m bench.service.scripts [--most 100000]

prints the longest run of each script in milliseconds, by kind and number: CPU time of the Redis process, so that other
work on the machine does not count. Runs over LIMIT_MS are repeated, and the shortest of NUM_ROUNDS counts. Ends with
status 1 if a script took longer than that.

What there is many of is made by the scripts themselves, in a loop inside Redis (`bench_repeat`): a call for each from
here would take most of the time.
"""

from __future__ import annotations

import asyncio
import os
import re
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import click
from tabulate import tabulate

from msf_scheduler.claims import Claim, ClaimRequest
from msf_scheduler.connection import RedisClient, call, connect
from msf_scheduler.embedded_valkey import EmbeddedValkey
from msf_scheduler.job_events import JobWatcher
from msf_scheduler.jobs import Delivery, JobSpec, Priority, Progress, Terms, Timings, WorkerInfo
from msf_scheduler.keys import IDEMPOTENCY
from msf_scheduler.leases import Leases
from msf_scheduler.queue import Idempotency, JobQueue
from msf_scheduler.registry import Registry
from msf_scheduler.reply_reader import ReplyReader
from msf_scheduler.scripts import library
from msf_scheduler.stage import Stage
from msf_scheduler.tunables import LEASE_S, MAX_CLAIMED_JOBS, MAX_WEBHOOKS_TAKEN
from msf_scheduler.webhook_queue import WebhookQueue

LIMIT_MS = 5.0
NUM_ROUNDS = 3
NUM_AT_ONCE = 16  # calls under way
NUM_REPEATED = 200  # by one call, during which Redis answers nobody
NUM_TIMED = 20  # calls of those that are repeated
EACH = "eacheach"  # in a command that is repeated: its number, in eight digits
ONE_IDEMPOTENCY_KEY = re.compile(f"(?<={IDEMPOTENCY})[0-9a-f]+")  # a digest: EACH does not show in it
EACH_OF_1000 = "thousand"  # the same, modulo 1,000
MODEL = ("bench", "1")
TIMINGS = Timings(queue_ms=1, base_ms=1, residual_ms=1, decode_ms=1, encode_ms=1, total_ms=5)
PROGRESS = Progress(stage=Stage.BASE, steps_done=1, num_steps=2, samples_done=0)


class _Recorded(Exception):
    """Raised in place of sending a command, with its words."""


class _Recorder:
    """Redis client that sends nothing."""

    @asynccontextmanager
    async def pipeline(self, **options: object) -> AsyncIterator[_PipelineRecorder]:
        yield _PipelineRecorder()

    async def execute_command(self, *words: Any) -> None:
        raise _Recorded(*words)


class _PipelineRecorder:
    def __init__(self) -> None:
        self._words: tuple[Any, ...] = ()

    def execute_command(self, *words: Any) -> None:
        self._words = words

    async def execute(self, **options: object) -> None:
        raise _Recorded(*self._words)


def job_id_of(number: int | str) -> str:
    """Return the id of the job that is admitted by call `number` of a repeated admission."""
    return f"{number:0>32}"


@dataclass
class Store:
    """One Redis, and the parties that use it."""

    redis: RedisClient

    def __post_init__(self) -> None:
        self.queue = JobQueue(self.redis, result_ttl_s=0.0)
        self.leases = Leases(self.redis, result_ttl_s=0.0)
        self.silent = Leases(self.redis, lease_s=0.0, result_ttl_s=0.0)

    async def repeat(self, number: int, act: Callable[[RedisClient], Awaitable[object]]) -> None:
        """Run the command of `act` `number` times, with EACH replaced by the number of the call, from 0.

        Only the last few are timed: among many, a few are interrupted.
        """
        try:
            await act(cast(RedisClient, _Recorder()))
        except _Recorded as recorded:
            _, function, num_keys, *words = recorded.args
        words = [ONE_IDEMPOTENCY_KEY.sub(EACH, word) if isinstance(word, str) else word for word in words]
        for start in range(0, number, NUM_REPEATED):
            count = min(NUM_REPEATED, number - start)
            counts = (start, count, number - NUM_TIMED)
            await self.redis.execute_command("FCALL", "bench_repeat", 0, function, num_keys, *counts, *words)

    async def admit(
        self,
        number: int = 1,
        *,
        version: str = "1",
        is_shared: bool = False,
        bound_to: str | None = None,
        number_of: str = EACH,
        **terms: object,
    ) -> None:
        """Queue jobs, with ids of `number_of`; without `bound_to` they may be run by any worker."""
        spec = JobSpec(model="bench", version=version, label=0, num_samples=1, seed=0, num_steps=2, guidance_scale=1.0)

        async def admit_one(redis: RedisClient) -> None:
            many = 10**9
            queue = JobQueue(
                redis, max_queued_samples=many, max_stored_jobs=many, max_pending_webhooks=many, result_ttl_s=0.0
            )
            await queue.admit(
                spec,
                Terms.model_validate(terms),
                job_id=job_id_of(number_of),
                reply_to="bench",
                idempotency=Idempotency("one of them", b""),
                fingerprint="bench" if is_shared else None,
                bound_to=bound_to,
            )

        await self.repeat(number, admit_one)

    async def claim(self, leases: Leases, num_jobs: int, num_held_lanes: int = 0) -> list[Claim]:
        """Claim until there are `num_jobs`, or no more work."""
        lanes = [(Priority.NORMAL, f"held-{number:08}") for number in range(num_held_lanes)]
        claims: list[Claim] = []
        while len(claims) < num_jobs:
            request = ClaimRequest(MODEL, 2 * min(num_jobs - len(claims), 10_000), lanes, 10**6)
            [result] = await leases.claim_many("worker", [request], idle=not claims)
            if not result.claims:
                break
            claims += result.claims
        return claims

    async def claim_all(self, number: int, lease_s: float = LEASE_S) -> list[Claim]:
        """Claim the first `number` admitted jobs, which nobody has claimed before."""
        [first, *_] = await self.claim(Leases(self.redis, lease_s=lease_s), 1)
        request = ClaimRequest(MODEL, 2 * MAX_CLAIMED_JOBS, [], 10**6)
        await self.repeat(
            -(-number // MAX_CLAIMED_JOBS),
            lambda redis: Leases(redis, lease_s=lease_s).claim_many("worker", [request], idle=False),
        )
        jobs = (first.job.model_copy(update={"id": job_id_of(number)}) for number in range(number))
        return [Claim(job, "worker") for job in jobs]

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
    await store.admit(number, is_shared=True, webhook_url="https://example.com")
    await store.queue.cancel(job_id_of(0))
    await store.end(await store.claim(store.leases, 2))
    await store.claim(store.silent, 64)
    await store.leases.sweep()


async def _late_followers(store: Store, number: int) -> None:
    await store.admit(number, is_shared=True, timeout_s=0.001)
    await store.leases.sweep()


async def _jobs(store: Store, number: int) -> None:
    await store.admit(number)
    await in_turn(store.queue.cancel(job_id_of(each)) for each in range(50))
    await store.queue.depth(*MODEL)
    await store.end(await store.claim(store.leases, 200))
    await store.leases.sweep()


async def _late_jobs(store: Store, number: int) -> None:
    await store.admit(number, timeout_s=0.001)
    await store.claim(store.leases, 10)
    await store.leases.sweep()


async def _running_jobs(store: Store, number: int) -> None:
    await store.admit(number)
    claims = await store.claim_all(number)
    await store.leases.renew("worker", claims)
    await store.leases.reclaim("another")
    await store.leases.reclaim("worker")


async def _lapsed_leases(store: Store, number: int) -> None:
    await store.admit(number)
    claims = await store.claim_all(number, lease_s=0.0)
    await store.leases.sweep()
    await store.leases.renew("worker", claims)


async def _tenants(store: Store, number: int) -> None:
    await store.admit(number, tenant=f"tenant-{EACH}")
    for _ in range(3):
        await store.end(await store.claim(store.leases, 64))


async def _served_tenants(store: Store, number: int) -> None:
    """Serve every tenant once, and then one of them again, which all others are level with from then on."""
    await store.admit(number, tenant=f"tenant-{EACH}")
    await store.admit(number, tenant="tenant-00000000", number_of=f"9{EACH}")
    await store.claim_all(number)
    await store.claim(store.leases, 1)


async def _lanes_held(store: Store, number: int) -> None:
    number = min(number, 4096)  # a worker holds no more samples
    await store.admit(number + 100, tenant=f"held-{EACH}")
    await store.claim(store.leases, 64, num_held_lanes=number)


async def _users(store: Store, number: int) -> None:
    await store.admit(number, user=f"user-{EACH}")
    await store.end(await store.claim(store.leases, 64))


async def _webhooks(store: Store, number: int) -> None:
    await store.admit(number, tenant=f"tenant-{EACH_OF_1000}", webhook_url=f"https://{EACH}.example")
    [claim, *_] = await store.claim_all(number)
    pattern = Claim(claim.job.model_copy(update={"id": job_id_of(EACH)}), claim.worker_id)
    await store.repeat(number, lambda redis: Leases(redis).succeed(pattern, [b"image"], TIMINGS))
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
    await store.admit(100, tenant=f"tenant-{EACH}")
    await store.leases.sweep()


async def _subscribers(store: Store, number: int) -> None:
    await store.admit()
    for each_number in range(number):
        watcher = JobWatcher(store.redis, ReplyReader(store.redis, f"server-{each_number}"))
        updates = watcher.follow(job_id_of(0))
        await anext(updates)
        await updates.aclose()
    claims = await store.claim(store.leases, 1)
    await store.leases.publish_progress(claims[0], PROGRESS)
    await store.leases.succeed(claims[0], [b"image"], TIMINGS)


async def _bound_jobs(store: Store, number: int) -> None:
    await store.admit(number, bound_to="gone")
    await call(store.redis, "ZADD", "{msf}:queue:bench/1:fingerprints", 0, "gone")
    await store.leases.sweep()


async def _model_versions(store: Store, number: int) -> None:
    await store.admit(number, version=EACH)
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
    "tenants served before": (_served_tenants, 100_000),
    "lanes held by a worker": (_lanes_held, 4096),
    "users": (_users, 100_000),
    "webhooks": (_webhooks, 100_000),
    "workers": (_workers, 10_000),
    "servers that watch a job": (_subscribers, 1000),
    "model versions": (_model_versions, 10_000),
    "kilobytes of images": (_kilobytes, 32_768),
}


_TIMING = f"""\
local callbacks, longest = {{}}, {{}}
local function register(options)
  local name, callback = options.function_name, options.callback
  options.callback = function(KEYS, ARGV)
    local started = os.clock()
    local reply = callback(KEYS, ARGV)
    longest[name] = math.max(longest[name] or 0, os.clock() - started)
    return reply
  end
  callbacks[name] = {{plain = callback, timed = options.callback}}
  redis.register_function(options)
end
-- ARGV: function, number of its keys, first number, how many, first number that is timed; words of the call
redis.register_function('bench_repeat', function(_, ARGV)
  local num_keys, start, timed_from = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[5])
  for number = start, start + ARGV[4] - 1 do
    local words = {{}}
    for position = 6, #ARGV do
      local word = string.gsub(ARGV[position], '{EACH}', string.format('%08d', number))
      words[#words + 1] = string.gsub(word, '{EACH_OF_1000}', string.format('%08d', number % 1000))
    end
    local call = callbacks[ARGV[1]][number < timed_from and 'plain' or 'timed']
    call({{unpack(words, 1, num_keys)}}, {{unpack(words, num_keys + 1)}})
  end
end)
redis.register_function('bench_longest', function()
  local reply = {{}}
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
    await store.redis.execute_command("FLUSHALL", "SYNC")  # in a thread, it would count as time of the scripts
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

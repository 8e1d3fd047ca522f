"""Ray Serve's application, at the port in `BENCH_PEERS_PORT`."""

from __future__ import annotations

import asyncio
import os
import signal

import ray
from ray import serve
from starlette.requests import Request

from bench.peers.pipeline import BATCH_DELAY_S, BATCH_SIZE, PATH, Body, Pipeline


class RayImages:
    """A process with the plans; Ray's HTTP proxy is another."""

    def __init__(self) -> None:
        self._pipeline = Pipeline.from_environment()

    @serve.batch(max_batch_size=BATCH_SIZE, batch_wait_timeout_s=BATCH_DELAY_S)
    async def generate(self, bodies: list[Body]) -> list[Body]:
        return await asyncio.to_thread(self._pipeline.answer, bodies)

    async def __call__(self, request: Request) -> Body:
        answer: Body = await self.generate(await request.json())
        return answer


if __name__ == "__main__":
    ray.init(include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["BENCH_PEERS_PORT"])})
    deployment = serve.deployment(max_ongoing_requests=100_000)(RayImages)
    serve.run(deployment.bind(), route_prefix=PATH)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    ray.shutdown()

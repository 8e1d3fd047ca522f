"""BentoML's service, for `bentoml serve`. Its batcher has no fixed delay: it learns when to wait."""

from __future__ import annotations

import bentoml

from bench.peers.pipeline import BATCH_SIZE, PATH, TIMEOUT_S, Body, Pipeline


@bentoml.service(workers=1, traffic={"timeout": TIMEOUT_S, "max_concurrency": 100_000})
class BentoImages:
    """One process with HTTP server, batcher and plans."""

    def __init__(self) -> None:
        self._pipeline = Pipeline.from_environment()

    @bentoml.api(route=PATH, batchable=True, max_batch_size=BATCH_SIZE, max_latency_ms=1000 * TIMEOUT_S)
    def generate(self, requests: list[Body]) -> list[Body]:
        return self._pipeline.answer(requests)

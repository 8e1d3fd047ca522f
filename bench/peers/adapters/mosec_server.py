"""Mosec's server. Address, port and limits come from the variables `MOSEC_*`."""

from __future__ import annotations

from mosec import Server, Worker

from bench.peers.pipeline import BATCH_DELAY_S, BATCH_SIZE, PATH, TIMEOUT_S, Body, Pipeline


class MosecWorker(Worker):
    """A process with the plans; mosec's HTTP server and batcher are another, in Rust."""

    def __init__(self) -> None:
        super().__init__()
        self._pipeline = Pipeline.from_environment()

    def forward(self, data: list[Body]) -> list[Body]:
        return self._pipeline.answer(data)


if __name__ == "__main__":
    server = Server()
    server.append_worker(
        MosecWorker, max_batch_size=BATCH_SIZE, max_wait_time=int(1000 * BATCH_DELAY_S), timeout=TIMEOUT_S, route=PATH
    )
    server.run()

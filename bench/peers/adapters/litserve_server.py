"""LitServe's server, at the port in `BENCH_PEERS_PORT`."""

from __future__ import annotations

import os

from litserve import LitAPI, LitServer

from bench.peers.pipeline import BATCH_DELAY_S, BATCH_SIZE, PATH, TIMEOUT_S, Body, Pipeline


class LitServeApi(LitAPI):
    """A process with the plans; LitServe's HTTP server is another."""

    def setup(self, device: str) -> None:
        self._pipeline = Pipeline.from_environment()

    def batch(self, inputs: list[Body]) -> list[Body]:
        return inputs

    def predict(self, x: list[Body]) -> list[Body]:
        return self._pipeline.answer(x)

    def unbatch(self, output: list[Body]) -> list[Body]:
        return output


if __name__ == "__main__":
    api = LitServeApi(max_batch_size=BATCH_SIZE, batch_timeout=BATCH_DELAY_S, api_path=PATH)
    server = LitServer(api, accelerator="cpu", timeout=TIMEOUT_S, fast_queue=True)
    server.run(
        host="127.0.0.1",
        port=int(os.environ["BENCH_PEERS_PORT"]),
        log_level="warning",
        access_log=False,
        generate_client_file=False,
    )

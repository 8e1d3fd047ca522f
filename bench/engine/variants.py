"""OpenVINO's choices, measured: static against dynamic shapes, one stream against two, one thread against two."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from statistics import median

import openvino as ov

from bench.engine.methods import Case
from msf_engine.backends.openvino import OpenVinoBackend

ROUNDS = 5
REPEATS = 6


def print_variants(case: Case) -> None:
    """Samples per second of each variant, run in turns; two requests at a time where there are two streams."""
    cores = min(os.cpu_count() or 1, 2)
    ways = {
        "static, 1 stream, 1 thread (a worker for each core)": _variant(case, static=True, streams=1, threads=1),
        "dynamic, 1 stream, 1 thread": _variant(case, static=False, streams=1, threads=1),
        f"static, 1 stream, {cores} threads": _variant(case, static=True, streams=1, threads=cores),
        f"static, {cores} streams, {cores} threads": _variant(case, static=True, streams=cores, threads=cores),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, run in ways.items():
            rates[name].append(run())
    first = median(next(iter(rates.values())))
    print(f"### OpenVINO's shapes, streams and threads: {case.stage}, bucket {case.bucket}\n")
    print("| variant | samples/s | ratio |\n|---|---|---|")
    for name, its in rates.items():
        print(f"| {name} | {median(its):.1f} | {median(its) / first:.2f} |")
    print()


def _variant(case: Case, *, static: bool, streams: int, threads: int) -> Callable[[], float]:
    backend, spec, module = OpenVinoBackend(None, threads), case.spec(), case.module()
    model = backend.static_model(spec, module) if static else backend.dynamic_model(spec, module)
    config = {**backend.config(spec), "NUM_STREAMS": streams}
    compiled = ov.Core().compile_model(model, "CPU", config)
    requests = [compiled.create_infer_request() for _ in range(streams)]
    feeds = [tensor.numpy() for tensor in case.inputs()]
    for request in requests:
        request.infer(feeds)

    def run() -> float:
        started_at = time.perf_counter()
        for _ in range(REPEATS):
            for request in requests:
                request.start_async(feeds)
            for request in requests:
                request.wait()
        return REPEATS * streams * case.bucket / (time.perf_counter() - started_at)

    return run

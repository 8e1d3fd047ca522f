"""OpenVINO's time in a step, from its own profile, grouped by kind of operator."""

from __future__ import annotations

from collections import defaultdict
from statistics import median

import openvino as ov
from openvino import properties
from tabulate import tabulate

from bench.engine.methods import PEAK, StepCase, measure, peak_flops
from msf_engine.backends.openvino import OpenVinoBackend

NUM_RUNS = 20
KINDS = {
    "matrix products": ("FullyConnected", "MatMul", "Gemm", "InnerProduct"),
    "attention": ("ScaledDotProductAttention", "SDPA", "MHA"),
    "layer norm": ("MVN", "LayerNorm", "RMSNorm"),
    "conversions and layouts": ("Reorder", "Convert", "Transpose", "Reshape", "Concat", "Split", "StridedSlice"),
}
OTHER = "elementwise and other"


def kind_of(node_type: str) -> str:
    """Return the kind of an operator by the name of its type."""
    for kind, names in KINDS.items():
        if any(name.lower() in node_type.lower() for name in names):
            return kind
    return OTHER


def print_operators(case: StepCase, title: str) -> None:
    backend, spec = OpenVinoBackend(None, case.num_threads), case.spec()
    config = {**backend.config(spec), properties.enable_profiling(): True}
    request = ov.Core().compile_model(backend.static_model(spec, case.module()), "CPU", config).create_infer_request()
    feeds = [tensor.numpy() for tensor in case.inputs()]
    request.infer(feeds)
    times_ms: dict[str, list[float]] = defaultdict(list)
    for _ in range(NUM_RUNS):
        request.infer(feeds)
        run_ms: dict[str, float] = defaultdict(float)
        for node in request.get_profiling_info():
            run_ms[kind_of(f"{node.exec_type} {node.node_type}")] += 1000 * node.real_time.total_seconds()
        for kind, kind_ms in run_ms.items():
            times_ms[kind].append(kind_ms)
    medians_ms = {kind: median(values) for kind, values in times_ms.items()}
    total_ms = sum(medians_ms.values())
    rows = [[kind, f"{ms:.2f}", f"{ms / total_ms:.0%}"] for kind, ms in medians_ms.items()]
    rows.sort(key=lambda row: -medians_ms[row[0]])
    peak = peak_flops() / median(measure(case, (), 3)[PEAK].seconds)
    products_s = (medians_ms.get("matrix products", 0.0) + medians_ms.get("attention", 0.0)) / 1000
    print(f"#### Time by operator: {title}\n")
    print(tabulate(rows, ["operators", "ms", "share"], tablefmt="github"))
    print(f"\nMatrix products and attention alone reach {case.flops() / products_s / peak:.0%} of the peak.\n")

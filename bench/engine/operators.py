"""Where the time of OpenVINO's step goes: its own profile, grouped by what the operators do."""

from __future__ import annotations

from collections import defaultdict
from statistics import median
from typing import Any

from bench.engine.methods import Case, compete, peak_flops

NUM_RUNS = 20
KINDS = (
    ("matrix products", ("FullyConnected", "MatMul", "Gemm", "InnerProduct")),
    ("attention", ("ScaledDotProductAttention", "SDPA", "MHA")),
    ("layer norm", ("MVN", "LayerNorm", "RMSNorm")),
    ("conversions and layouts", ("Reorder", "Convert", "Transpose", "Reshape", "Concat", "Split", "StridedSlice")),
)


def kind_of(node_type: str) -> str:
    """The group of an operator, by its type's name."""
    for kind, names in KINDS:
        if any(name.lower() in node_type.lower() for name in names):
            return kind
    return "elementwise and other"


def print_operators(case: Case, title: str) -> None:
    """A table of OpenVINO's operators by kind."""
    import openvino as ov
    from openvino import properties

    from msf_engine.backends.openvino import OpenVinoBackend

    backend, spec = OpenVinoBackend(None, case.num_threads), case.spec()
    blob_config = backend.config(spec)
    model = backend.static_model(spec, case.module())
    compiled = ov.Core().compile_model(model, "CPU", {**blob_config, properties.enable_profiling(): True})
    request = compiled.create_infer_request()
    feeds = [tensor.numpy() for tensor in case.inputs()]
    spent: dict[str, list[float]] = defaultdict(list)
    for number in range(NUM_RUNS + 1):
        request.infer(feeds)
        if number:
            for kind, ms in _by_kind(request.get_profiling_info()).items():
                spent[kind].append(ms)
    medians = {kind: median(its_ms) for kind, its_ms in spent.items()}
    whole = sum(medians.values())
    print(f"#### Where the time goes: {title}\n\n| operators | ms | share |\n|---|---|---|")
    for kind, ms in sorted(medians.items(), key=lambda item: -item[1]):
        print(f"| {kind} | {ms:.2f} | {100 * ms / whole:.0f} % |")
    found = compete(case, (), 3)
    peak = peak_flops() / next(iter(found.values())).median_s
    products_s = (medians.get("matrix products", 0.0) + medians.get("attention", 0.0)) / 1000
    print(f"\nMatrix products and attention alone run at {100 * case.flops() / products_s / peak:.0f} % of the peak.\n")


def _by_kind(profile: list[Any]) -> dict[str, float]:
    spent: dict[str, float] = defaultdict(float)
    for node in profile:
        if node.real_time.total_seconds() > 0:
            spent[kind_of(node.exec_type + " " + node.node_type)] += 1000 * node.real_time.total_seconds()
    return spent

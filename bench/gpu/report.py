"""Report of the GPU benchmark in Markdown, without other packages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.gpu.cells import VARIES, CellResult, StageTimes
from msf_engine.plan_validation import equal_buckets
from msf_scheduler.stage import Stage

EAGER_BACKENDS = ("eager", "eager-cast")
HEAD = ["network", "backend", "bucket", "base ms", "residual ms", "images/s", "of peak", "GB", "error"]
HEAD += ["strict", "compile s"]
LEGEND = """
Milliseconds: one guided step batch, wall time from host tensors to host tensors, median / p99 (device alone).
Images/s: 20 denoising steps per image (MSF: 16 base and 4 residual), without decoding. Error: relative RMS against
eager float32, the larger of both stages. Strict: a sample's bytes are equal in every slot, next to any neighbour, and
in these buckets. `-cast`: the whole network in bf16, including the tokens between blocks."""


def summary(results: Sequence[CellResult]) -> str:
    """Return hardware, a table per size, MSF against DiT, and each network's fastest backend against eager bf16."""
    complete = [result for result in results if not result.failure]
    parts = ["# Denoising on a GPU", *sorted({f"- {result.hardware}" for result in results})]
    parts += [*sorted({f"- {result.backend} {result.precision}: {result.fingerprint}" for result in results}), LEGEND]
    for size, image_size in dict.fromkeys((result.network.size, result.network.image_size) for result in results):
        group = [result for result in results if (result.network.size, result.network.image_size) == (size, image_size)]
        parts += [f"\n## {size}/2 at {image_size}²\n", _markdown(HEAD, [_row(result, group) for result in group])]
    parts += ["\n## MSF against DiT, images/s\n", _dit_comparison(complete)]
    parts += ["\n## Fastest backend against eager bf16, images/s\n", _eager_comparison(complete)]
    return "\n".join(parts) + "\n"


def _row(result: CellResult, group: Sequence[CellResult]) -> list[str]:
    name = [result.network.kind, f"{result.backend} {result.precision}", str(result.bucket)]
    if result.failure:
        return [*name, f"failed: {result.failure[:80]}", *[""] * (len(HEAD) - 4)]
    error = max(times.error for times in result.stages.values())
    return [
        *name,
        *(_times(result.stages.get(stage)) for stage in (Stage.BASE, Stage.RESIDUAL)),
        f"{result.images_per_s:.4g}",
        f"{result.of_peak:.0%}",
        "" if result.memory_mb is None else f"{result.memory_mb / 1e3:.1f}",
        f"{error:.2g}" + (" (beyond tolerance)" if error > result.tolerance else ""),
        _strict_buckets(result, group),
        f"{result.compile_s:.1f}",
    ]


def _times(times: StageTimes | None) -> str:
    if times is None:
        return ""
    device = "" if times.device_ms is None else f" ({times.device_ms:.4g})"
    return f"{times.ms:.4g} / {times.p99_ms:.4g}{device}"


def _strict_buckets(result: CellResult, group: Sequence[CellResult]) -> str:
    """Return the measured buckets in which this cell's samples have the same bytes."""
    if not all(times.digest for times in result.stages.values()):
        return "not swept"
    key = result.network, result.backend, result.precision
    peers = [other for other in group if (other.network, other.backend, other.precision) == key and not other.failure]
    peers = [peer for peer in peers if all(times.digest for times in peer.stages.values())]
    sets = []
    for stage in result.stages:
        digests = {peer.bucket: peer.stages[stage].digest for peer in peers}
        stage_sets = equal_buckets({bucket: None if digest == VARIES else digest for bucket, digest in digests.items()})
        sets.append(set(next(iter(stage_sets), ())))
    strict = set.intersection(*sets)
    return ", ".join(map(str, sorted(strict))) if result.bucket in strict else "no"


def _dit_comparison(results: Sequence[CellResult]) -> str:
    by_text = {str(result): result for result in results}
    lines = []
    for result in results:
        dit = by_text.get(str(result).replace("MSF-", "DiT-"))
        if result.network.kind == "MSF" and dit is not None:
            size = str(result.network).removeprefix("MSF-")
            lines.append([size, f"{result.backend} {result.precision}", str(result.bucket), *_compare(result, dit)])
    return _markdown(("size", "backend", "bucket", "MSF", "DiT", "ratio"), lines)


def _eager_comparison(results: Sequence[CellResult]) -> str:
    """Compare the fastest compiled backend with the faster of both eager ones in bf16."""
    lines = []
    for network, bucket in dict.fromkeys((result.network, result.bucket) for result in results):
        group = [result for result in results if (result.network, result.bucket) == (network, bucket)]
        eager = [result for result in group if result.backend in EAGER_BACKENDS and result.precision == "bf16"]
        compiled = [result for result in group if result.backend not in EAGER_BACKENDS]
        if eager and compiled:
            base, best = max(eager, key=_speed), max(compiled, key=_speed)
            lines.append([str(network), str(bucket), f"{best.backend} {best.precision}", *_compare(best, base)])
    return _markdown(("network", "bucket", "fastest", "images/s", "eager bf16", "ratio"), lines)


def _compare(one: CellResult, other: CellResult) -> list[str]:
    return [f"{one.images_per_s:.4g}", f"{other.images_per_s:.4g}", f"{_speed(one) / _speed(other):.2f}"]


def _speed(result: CellResult) -> float:
    return result.images_per_s


def _markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in rows)

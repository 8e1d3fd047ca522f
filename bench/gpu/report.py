"""Report of the GPU benchmark in Markdown, without other packages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.gpu.cells import VARIES, CellResult, StageTimes
from msf_engine.plan_validation import equal_buckets
from msf_scheduler.stage import TWO_STAGES, Stage

HEAD = ["network", "backend", "rows", "base ms", "residual ms", "decode ms", "denoised/s", "of peak"]
HEAD += ["images/s", "of networks", "device busy", "GB", "error", "strict", "compile s"]
LEGEND = """
Milliseconds: a batch's network alone on the device (with gather, guidance, update and scatter). Two rows are one
guided sample; 20 denoising steps make an image (MSF: 16 base and 4 residual). Denoised/s: if the device ran these
networks and nothing else. Images/s: the engine's loop, noise in and pixels out; of networks: relative to the networks
alone, decoder included. Error: relative RMS against eager float32, the larger of both stages. Strict: a row's bytes are
equal in every place, next to any neighbour, and in these buckets. `-cast`: the whole network in bf16, including the
tokens between blocks."""


def summary(results: Sequence[CellResult]) -> str:
    """Return hardware, a table per size, MSF against DiT, and the engine against torch as one writes it."""
    complete = [result for result in results if not result.failure]
    parts = ["# Images on a GPU", *sorted({f"- {result.hardware}" for result in results})]
    parts += [*sorted({f"- {result.backend} {result.precision}: {result.fingerprint}" for result in results}), LEGEND]
    for size, image_size in dict.fromkeys((result.network.size, result.network.image_size) for result in results):
        group = [result for result in results if (result.network.size, result.network.image_size) == (size, image_size)]
        parts += [f"\n## {size}/2 at {image_size}²\n", _markdown(HEAD, [_row(result, group) for result in group])]
    parts += ["\n## MSF against DiT, denoised/s\n", _dit_comparison(complete)]
    parts += ["\n## The engine against torch as one writes it, images/s\n", _plain_comparison(complete)]
    return "\n".join(parts) + "\n"


def _row(result: CellResult, group: Sequence[CellResult]) -> list[str]:
    name = [result.network.kind, f"{result.backend} {result.precision}", str(result.bucket)]
    if result.failure:
        return [*name, f"failed: {result.failure[:80]}", *[""] * (len(HEAD) - 4)]
    loop, networks_per_s = result.loop, result.networks_per_s
    return [
        *name,
        *(_times(result.stages.get(stage)) for stage in TWO_STAGES),
        f"{result.denoised_per_s:.4g}",
        f"{result.of_peak:.0%}",
        "" if loop is None else f"{loop.images_per_s:.4g}",
        "" if loop is None or networks_per_s is None else f"{loop.images_per_s / networks_per_s:.0%}",
        "" if loop is None else f"{loop.device_share:.0%}",
        "" if result.memory_mb is None else f"{result.memory_mb / 1e3:.1f}",
        _error(result),
        _strict_buckets(result, group),
        f"{result.compile_s:.1f}",
    ]


def _times(times: StageTimes | None) -> str:
    if times is None:
        return ""
    return f"{times.network_ms:.4g}" + ("" if times.step_ms is None else f" ({times.step_ms:.4g})")


def _error(result: CellResult) -> str:
    error = max(times.error for stage, times in result.stages.items() if stage is not Stage.DECODE)
    is_accepted = all(times.error <= result.tolerances[stage] for stage, times in result.stages.items())
    return f"{error:.2g}" + ("" if is_accepted else " (beyond tolerance)")


def _strict_buckets(result: CellResult, group: Sequence[CellResult]) -> str:
    """Return the measured buckets in which this cell's rows have the same bytes in both denoising stages."""
    stages = [stage for stage in result.stages if stage is not Stage.DECODE]
    if not all(result.stages[stage].digest for stage in stages):
        return "not swept"
    key = result.network, result.backend, result.precision
    peers = [other for other in group if (other.network, other.backend, other.precision) == key and not other.failure]
    peers = [peer for peer in peers if all(peer.stages[stage].digest for stage in stages)]
    sets = []
    for stage in stages:
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
            rates = _compare(result.denoised_per_s, dit.denoised_per_s)
            lines.append([size, f"{result.backend} {result.precision}", str(result.bucket), *rates])
    return _markdown(("size", "backend", "rows", "MSF", "DiT", "ratio"), lines)


def _plain_comparison(results: Sequence[CellResult]) -> str:
    """Compare the engine's fastest loop with the faster of both eager networks in bf16, without the engine."""
    lines = []
    for network, bucket in dict.fromkeys((result.network, result.bucket) for result in results):
        group = [result for result in results if (result.network, result.bucket) == (network, bucket)]
        plain = [result.plain_per_s for result in group if result.precision == "bf16" and result.plain_per_s]
        loops = {f"{result.backend} {result.precision}": result.loop.images_per_s for result in group if result.loop}
        if plain and loops:
            fastest = max(loops, key=loops.__getitem__)
            lines.append([str(network), str(bucket), fastest, *_compare(loops[fastest], max(plain))])
    return _markdown(("network", "rows", "fastest", "engine", "torch, bf16", "ratio"), lines)


def _compare(one: float, other: float) -> list[str]:
    return [f"{one:.4g}", f"{other:.4g}", f"{one / other:.2f}"]


def _markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in rows)

"""Report of the GPU benchmark in Markdown, without other packages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.gpu.cells import VARIES, CellRow
from msf_engine.plan_validation import strict_sets
from msf_scheduler.stage import Stage

STAGES = (Stage.BASE, Stage.RESIDUAL)
HEAD = ["network", "backend", "bucket", "base ms", "residual ms", "images/s", "of peak", "GB", "error"]
HEAD += ["strict", "compile s"]
LEGEND = """
Milliseconds: one guided step batch, wall time from host tensors to host tensors, median / p99 (device alone).
Images/s: 20 denoising steps per image (MSF: 16 base and 4 residual), without decoding. Error: relative RMS against
eager float32, the larger of both stages. Strict: a sample's bytes are equal in every slot, next to any neighbour, and
in these buckets. `-cast`: the whole network in bf16, including the tokens between blocks."""


def summary(rows: Sequence[CellRow]) -> str:
    """Return hardware, a table per size, MSF against DiT, and each network's fastest backend against eager bf16."""
    complete = [row for row in rows if not row.error]
    parts = ["# Denoising on a GPU", *sorted({f"- {row.hardware}" for row in rows})]
    parts += [*sorted({f"- {row.backend} {row.precision}: {row.fingerprint}" for row in rows}), LEGEND]
    for size, image_size in dict.fromkeys((row.size, row.image_size) for row in rows):
        group = [row for row in rows if (row.size, row.image_size) == (size, image_size)]
        parts += [f"\n## {size}/2 at {image_size}²\n", _table(group)]
    parts += ["\n## MSF against DiT, images/s\n", _dit_comparison(complete)]
    parts += ["\n## Fastest backend against eager bf16, images/s\n", _eager_comparison(complete)]
    return "\n".join(parts) + "\n"


def _table(rows: Sequence[CellRow]) -> str:
    lines = []
    for row in rows:
        name = (row.kind, f"{row.backend} {row.precision}", row.bucket)
        if row.error:
            lines.append((*name, f"failed: {row.error[:80]}", *[""] * (len(HEAD) - 4)))
            continue
        error = max(float(row.base_error), float(row.residual_error or 0))
        lines.append(
            (
                *name,
                _times(row.base_ms, row.base_p99_ms, row.base_device_ms),
                _times(row.residual_ms, row.residual_p99_ms, row.residual_device_ms),
                row.images_per_s,
                f"{float(row.of_peak):.0%}",
                f"{float(row.memory_mb) / 1e3:.1f}" if row.memory_mb else "",
                f"{error:.2g}" + (" (beyond tolerance)" if error > float(row.tolerance) else ""),
                _strict_buckets(row, rows),
                row.compile_s,
            )
        )
    return _markdown(HEAD, lines)


def _times(ms: str, p99_ms: str, device_ms: str) -> str:
    return f"{ms} / {p99_ms}" + (f" ({device_ms})" if device_ms else "") if ms else ""


def _strict_buckets(row: CellRow, rows: Sequence[CellRow]) -> str:
    """Return the measured buckets in which this cell's samples have the same bytes."""
    if not row.base_row:
        return "not swept"
    buckets_of_plan = [other for other in rows if other.key[:-1] == row.key[:-1] and not other.error]
    stages = STAGES if row.residual_row else STAGES[:1]
    sets = [strict_sets({int(other.bucket): _digest(other, stage) for other in buckets_of_plan}) for stage in stages]
    buckets = set.intersection(*(set(next(iter(stage_sets), ())) for stage_sets in sets))
    return ", ".join(str(bucket) for bucket in sorted(buckets)) if int(row.bucket) in buckets else "no"


def _digest(row: CellRow, stage: Stage) -> str | None:
    digest: str = getattr(row, f"{stage}_row")
    return None if digest in ("", VARIES) else digest


def _dit_comparison(rows: Sequence[CellRow]) -> str:
    dit = {row.key[1:]: row for row in rows if row.kind == "DiT"}
    lines = []
    for row in rows:
        if row.kind == "MSF" and (other := dit.get(row.key[1:])):
            name = (f"{row.size}/2 {row.image_size}²", f"{row.backend} {row.precision}", row.bucket)
            lines.append((*name, row.images_per_s, other.images_per_s, _ratio(row, other)))
    return _markdown(("size", "backend", "bucket", "MSF", "DiT", "ratio"), lines)


def _eager_comparison(rows: Sequence[CellRow]) -> str:
    """Compare the fastest compiled backend with the faster of both eager ones in bf16."""
    lines = []
    for key in dict.fromkeys(_network_and_bucket(row) for row in rows):
        group = [row for row in rows if _network_and_bucket(row) == key]
        eager = [row for row in group if row.backend in ("eager", "eager-cast") and row.precision == "bf16"]
        compiled = [row for row in group if row.backend not in ("eager", "eager-cast")]
        if eager and compiled:
            base, best = max(eager, key=_speed), max(compiled, key=_speed)
            name = (f"{best.kind}-{best.size}/2 {best.image_size}²", best.bucket, f"{best.backend} {best.precision}")
            lines.append((*name, best.images_per_s, base.backend, base.images_per_s, _ratio(best, base)))
    return _markdown(("network", "bucket", "fastest", "images/s", "eager bf16 by", "images/s", "ratio"), lines)


def _network_and_bucket(row: CellRow) -> tuple[str, ...]:
    return row.kind, row.size, row.image_size, row.bucket


def _ratio(one: CellRow, other: CellRow) -> str:
    return f"{_speed(one) / _speed(other):.2f}"


def _speed(row: CellRow) -> float:
    return float(row.images_per_s)


def _markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in rows)

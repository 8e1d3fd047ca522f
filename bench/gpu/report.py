"""The table of `bench.gpu` for people: markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.gpu.cells import VARIES, Row
from msf_engine.plan_validation import strict_sets
from msf_scheduler.stage import Stage

_STAGES = (Stage.BASE, Stage.RESIDUAL)


def summary(rows: Sequence[Row]) -> str:
    """Hardware, a table for each size, MSF against DiT, and every backend's best against eager bf16."""
    good = [row for row in rows if not row.error]
    parts = ["# Denoising on a GPU", *sorted({f"- {row.hardware}" for row in rows})]
    parts += sorted({f"- {row.backend} {row.precision}: {row.fingerprint}" for row in rows})
    parts.append(
        "\nMilliseconds are of one guided step batch, wall time from host tensors to host tensors (median / p99; "
        "device alone in brackets).\nImages/s are for 20 denoising steps an image (MSF: 16 base and 4 residual), "
        "without decoding. `error` is the relative RMS against eager float32\nof the worst of both stages. `strict`: "
        "a sample's bytes are the same in every slot, beside any neighbour, and in these buckets. `-cast`: the network "
        "in bf16\nas a whole, the tokens between blocks too."
    )
    for size, image_size in dict.fromkeys((row.size, row.image_size) for row in rows):
        of_size = [row for row in rows if (row.size, row.image_size) == (size, image_size)]
        parts += [f"\n## {size}/2 at {image_size}²\n", _table(of_size)]
    parts += ["\n## MSF against DiT, images/s\n", _against_dit(good)]
    parts += ["\n## The fastest backend against eager bf16, images/s\n", _against_eager(good)]
    return "\n".join(parts) + "\n"


def _table(rows: Sequence[Row]) -> str:
    head = ("network", "backend", "bucket", "base ms", "residual ms", "images/s", "of peak", "GB", "error", "strict", "compile s")  # fmt: skip  # noqa: E501
    lines = []
    for row in rows:
        name = (row.kind, f"{row.backend} {row.precision}", row.bucket)
        if row.error:
            lines.append((*name, f"failed: {row.error[:80]}", *[""] * (len(head) - 4)))
            continue
        error = max(float(row.base_error), float(row.residual_error or 0))
        lines.append((
            *name,
            _times(row.base_ms, row.base_p99_ms, row.base_device_ms),
            _times(row.residual_ms, row.residual_p99_ms, row.residual_device_ms),
            row.images_per_s,
            f"{100 * float(row.of_peak):.0f} %",
            f"{float(row.memory_mb) / 1e3:.1f}" if row.memory_mb else "",
            f"{error:.2g}" + (" (too far)" if error > float(row.tolerance) else ""),
            _strict(row, rows),
            row.compile_s,
        ))  # fmt: skip
    return _markdown(head, lines)


def _times(ms: str, p99_ms: str, device_ms: str) -> str:
    return f"{ms} / {p99_ms}" + (f" ({device_ms})" if device_ms else "") if ms else ""


def _strict(row: Row, rows: Sequence[Row]) -> str:
    """The buckets, of those measured, in which this network's samples come out the same, to the byte."""
    if not row.base_row:
        return "not tried"
    alike = [other for other in rows if other.key[:-1] == row.key[:-1] and not other.error]
    stages = _STAGES if row.residual_row else _STAGES[:1]
    sets = [strict_sets({int(other.bucket): _digest(other, stage) for other in alike}) for stage in stages]
    buckets = set.intersection(*(set(next(iter(of_stage), ())) for of_stage in sets))
    return ", ".join(str(bucket) for bucket in sorted(buckets)) if int(row.bucket) in buckets else "no"


def _digest(row: Row, stage: Stage) -> str | None:
    digest: str = getattr(row, f"{stage}_row")
    return None if digest in ("", VARIES) else digest


def _against_dit(rows: Sequence[Row]) -> str:
    dit = {row.key[1:]: row for row in rows if row.kind == "DiT"}
    pairs = [(row, dit[row.key[1:]]) for row in rows if row.kind == "MSF" and row.key[1:] in dit]
    head = ("size", "backend", "bucket", "MSF", "DiT", "ratio")
    return _markdown(head, [
        (f"{msf.size}/2 {msf.image_size}²", f"{msf.backend} {msf.precision}", msf.bucket,
         msf.images_per_s, other.images_per_s, _ratio(msf, other))
        for msf, other in pairs
    ])  # fmt: skip


def _against_eager(rows: Sequence[Row]) -> str:
    """The fastest of the rest beside eager mode in bf16, our way or with the network cast, whichever is faster."""
    lines = []
    for place in dict.fromkeys(_place(row) for row in rows):
        here = [row for row in rows if _place(row) == place]
        eager = [row for row in here if row.backend in ("eager", "eager-cast") and row.precision == "bf16"]
        others = [row for row in here if row.backend not in ("eager", "eager-cast")]
        if eager and others:
            plain, best = max(eager, key=_speed), max(others, key=_speed)
            name = f"{plain.kind}-{plain.size}/2 {plain.image_size}²"
            lines.append((name, plain.bucket, f"{best.backend} {best.precision}", best.images_per_s, plain.backend,
                          plain.images_per_s, _ratio(best, plain)))  # fmt: skip
    return _markdown(("network", "bucket", "fastest", "images/s", "eager bf16 by", "images/s", "ratio"), lines)


def _place(row: Row) -> tuple[str, ...]:
    return row.kind, row.size, row.image_size, row.bucket


def _ratio(one: Row, other: Row) -> str:
    return f"{_speed(one) / _speed(other):.2f}"


def _speed(row: Row) -> float:
    return float(row.images_per_s)


def _markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in rows)

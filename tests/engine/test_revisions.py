"""Fingerprints change when outputs do: each revision stands for recorded outputs of a fixed model."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

from msf_engine.revisions import NETWORK_REVISION, NUMERICS_REVISION
from tests.engine import fixed_outputs
from tests.engine.fixed_outputs import Outputs

RELATIVE = 1e-5


@pytest.mark.parametrize(
    ("part", "revision", "outputs_of"),
    [
        ("networks", NETWORK_REVISION, fixed_outputs.network_outputs),
        ("numerics", NUMERICS_REVISION, fixed_outputs.numeric_outputs),
    ],
)
def test_outputs_are_those_of_the_revision(part: str, revision: int, outputs_of: Callable[[], Outputs]) -> None:
    recorded = json.loads(fixed_outputs.RECORD.read_text())[part]
    advice = f"raise the revision of {part} and record again: python -m tests.engine.fixed_outputs"
    outputs = outputs_of()
    assert (recorded["revision"], recorded["outputs"].keys()) == (revision, outputs.keys()), advice
    for name, output in outputs.items():
        expected = np.array(recorded["outputs"][name], dtype=np.float32)
        assert output.shape == expected.shape, advice
        assert np.abs(output - expected).max() <= RELATIVE * np.abs(expected).max(), f"{name} differs: {advice}"

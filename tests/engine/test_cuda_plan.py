"""Plans on a GPU."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from msf_engine.backends import BackendName, Precision, get_backend
from msf_engine.guided_step import StepModule
from msf_engine.plan import PlanSpec, step_inputs
from msf_engine.plan_validation import STEP_TOLERANCE, EagerReference, validation_inputs
from msf_engine.repository import ModelVersion
from msf_scheduler.stage import Stage

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


@pytest.mark.filterwarnings("ignore")  # inside torch
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_plans_agree_with_the_reference_on_any_thread_and_in_any_order(
    version: ModelVersion, backend: BackendName, precision: Precision
) -> None:
    stage = Stage.RESIDUAL
    module = StepModule(version.load().residual, guided=True).eval()
    inputs = validation_inputs(version.config, {stage: version.load_time_embedding(stage)}, stage)
    reference = EagerReference.of(stage, module, inputs)
    chosen = get_backend(backend, precision, 1)
    plans = {}
    for bucket in (1, 4):
        spec = PlanSpec("tiny:1", "", stage, True, (bucket,), step_inputs(version.config.residual.denoiser))
        plans[bucket] = chosen.load(spec, b"", lambda: module)
        plans[bucket](*spec.example(bucket))
    results = []
    with ThreadPoolExecutor(1) as thread:
        for numbers in ([0], [1, 2, 3, 4], [2], [4, 3, 2, 1], [0]):
            outputs = thread.submit(plans[len(numbers)], *inputs.rows(numbers)).result()
            results.append((outputs, numbers))
    for outputs, numbers in results:  # after all calls: none may overwrite the outputs of an earlier one
        assert reference.error(outputs, numbers) <= STEP_TOLERANCE[precision]

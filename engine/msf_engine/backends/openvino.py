"""OpenVINO on a CPU: each network is compiled once, for any number of rows, from a graph with the weights in bfloat16.

Plans for fixed numbers of rows would be 4 % faster in large batches, but each has the weights in its memory again, and
takes as long to load as this one for all.
"""

from __future__ import annotations

import platform
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from msf_engine import plan_validation
from msf_engine.backends import BackendName, Precision, check_precision, describe_options
from msf_engine.errors import PlanError
from msf_engine.plan import Array, Plan, PlanSpec
from msf_scheduler.stage import Stage

if TYPE_CHECKING:
    from torch import nn

# OpenVINO's converter reports each use to Google Analytics unless this package is missing.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
import openvino as ov  # noqa: E402

_GRAPH = "network.xml"
_COMPILED = "compiled"  # folder inside a plan's: OpenVINO's own cache, without weights


class OpenVinoBackend:
    """By default denoises in bfloat16 if the CPU multiplies it natively, else in float32.

    It decodes in float32: bfloat16 costs up to two grey levels there and saves no time on small images.
    """

    name: BackendName = "openvino"
    buckets: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
    runs_here = True
    needs_warm_up = False

    def __init__(self, precision: Precision | None, num_threads: int) -> None:
        self._core = ov.Core()
        native = "BF16" in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self.precision = check_precision(self.name, precision, ("bf16", "fp32") if native else ("fp32",))
        self.device: str = self._core.get_property("CPU", "FULL_DEVICE_NAME")
        self._num_threads = num_threads

    @property
    def fingerprint(self) -> str:
        options = f"{describe_options(self.options(Stage.BASE))} decode {describe_options(self.options(Stage.DECODE))}"
        return f"{self.name} {self.precision} {ov.get_version()} {platform.machine()} {self.device} {options}"

    def tolerance(self, stage: Stage) -> float:
        return plan_validation.tolerance(stage, self._precision(stage))

    def compile(self, spec: PlanSpec, network: nn.Module, folder: Path) -> None:
        from msf_engine.export import export_program

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations between torch and OpenVINO
            graph = ov.convert_model(export_program(spec, network))
        shapes = [ov.PartialShape([-1, *shape]) for shape, _ in spec.inputs]
        graph.reshape(dict(zip(graph.inputs, shapes, strict=True)))
        _store_in_bfloat16(graph)
        ov.save_model(graph, folder / _GRAPH, compress_to_fp16=False)

    def load(self, spec: PlanSpec, folder: Path, source: Callable[[], nn.Module]) -> Plan:
        compiled = folder / _COMPILED
        options = self.options(spec.stage)
        cached = options | {"CACHE_DIR": str(compiled), "CACHE_MODE": "OPTIMIZE_SIZE"}
        try:
            return OpenVinoPlan(spec, self._core.compile_model(folder / _GRAPH, "CPU", cached))
        except RuntimeError:  # its cache is damaged
            shutil.rmtree(compiled, ignore_errors=True)
        try:
            return OpenVinoPlan(spec, self._core.compile_model(folder / _GRAPH, "CPU", options))
        except RuntimeError as error:
            raise PlanError(f"OpenVINO cannot load plan {spec}: {error}") from error

    def _precision(self, stage: Stage) -> Precision:
        return "fp32" if stage is Stage.DECODE else self.precision

    def options(self, stage: Stage) -> dict[str, str | int]:
        """Return OpenVINO's properties for a stage's plan."""
        return {
            "INFERENCE_PRECISION_HINT": "bf16" if self._precision(stage) == "bf16" else "f32",
            "INFERENCE_NUM_THREADS": self._num_threads,
            "NUM_STREAMS": 1,
        }


class OpenVinoPlan:
    """A compiled network, with one request for each number of rows: its arrays stay where they are."""

    def __init__(self, spec: PlanSpec, compiled: Any) -> None:
        self._spec = spec
        self._compiled = compiled
        self._requests: dict[int, tuple[Any, tuple[Array, ...]]] = {}
        self._started: Any = None

    def inputs(self, num_rows: int) -> tuple[Array, ...]:
        """Return the input arrays of the request for this number of rows."""
        if num_rows not in self._requests:
            request, arrays = self._compiled.create_infer_request(), self._spec.zeros(num_rows)
            for index, array in enumerate(arrays):
                request.set_input_tensor(index, ov.Tensor(array, shared_memory=True))
            self._requests[num_rows] = request, arrays
        return self._requests[num_rows][1]

    def start(self, num_rows: int) -> None:
        """Begin to compute in OpenVINO's threads."""
        self._started, _ = self._requests[num_rows]
        self._started.start_async()

    def wait(self) -> Array:
        """Return a view of the request's output."""
        try:
            self._started.wait()
        except RuntimeError as error:
            raise PlanError(f"OpenVINO failed to run plan {self._spec}: {error}") from error
        output: Array = self._started.get_output_tensor(0).data
        return output


def _store_in_bfloat16(graph: Any) -> None:
    """Replace float32 constants that lose nothing by bfloat16, as a model's weights are stored; it halves the file."""
    for node in graph.get_ops():
        if node.get_type_name() != "Constant" or node.get_element_type() != ov.Type.f32:
            continue
        bits = np.ascontiguousarray(node.data).view(np.uint32)
        if bits.size < 2 or (bits & 0xFFFF).any():
            continue
        tensor = ov.Tensor(ov.Type.bf16, ov.Shape(bits.shape))
        tensor.data.view(np.uint16)[...] = bits >> 16
        widened = ov.opset13.convert(ov.op.Constant(tensor), "f32")
        for target in node.output(0).get_target_inputs():
            target.replace_source_output(widened.output(0))


BACKEND = OpenVinoBackend

"""NVIDIA's TensorRT, or TensorRT-RTX instead, with strongly typed networks.

No engine has run yet. There are two routes to one. Torch-TensorRT converts the exported graph; it knows one range of
shapes, so each bucket gets its own engine, with a static shape. ONNX and TensorRT's parser work everywhere; their
engine has an optimization profile for each bucket, and the weights only once. TensorRT-RTX also builds engines without
a GPU.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from msf_engine import plan_validation
from msf_engine.backends import BackendName, Precision, check_precision, describe_options
from msf_engine.device import gpu_fingerprint
from msf_engine.device_plan import DevicePlan
from msf_engine.errors import BackendUnavailable, PlanError
from msf_engine.export import export_onnx, export_program
from msf_engine.options import DEFAULT_BUCKETS
from msf_engine.plan import Plan, PlanSpec
from msf_engine.precision import DTYPES, lowered
from msf_scheduler.stage import Stage

logger = logging.getLogger(__name__)

PACKAGES = ("tensorrt", "tensorrt_rtx")
ENGINE = "network.engine"
CONVERSION_OPTIONS = {
    "require_full_compilation": True,
    "use_explicit_typing": True,
    "offload_module_to_cpu": True,
}  # of Torch-TensorRT


def bucket_engine(bucket: int) -> str:
    """Return the file name of one bucket's engine."""
    return f"{bucket}.engine"


def load_package() -> ModuleType:
    """Import TensorRT, else TensorRT-RTX. Raises BackendUnavailable."""
    reasons = []
    for name in PACKAGES:
        if importlib.util.find_spec(name) is None:
            continue
        try:
            return importlib.import_module(name)
        except Exception as error:  # a package whose libraries cannot be loaded raises errors of any kind
            reasons.append(f"; {name} cannot be loaded: {error}")
    raise BackendUnavailable(
        "backend tensorrt needs TensorRT, pip install 'msf-serve[tensorrt]', or TensorRT-RTX, "
        f"pip install 'msf-serve[tensorrt-rtx]'{''.join(reasons)}"
    )


class TensorRtBackend:
    """By default denoises in bfloat16 and decodes in float32; with fp16 it decodes in float16, too.

    Float32 inputs of products are rounded to TF32 except with precision fp32.
    """

    name: BackendName = "tensorrt"
    buckets = DEFAULT_BUCKETS
    needs_warm_up = True

    def __init__(self, precision: Precision | None, num_threads: int) -> None:
        self.precision: Precision = check_precision(self.name, precision, ("bf16", "fp16", "fp32"))
        self._trt = load_package()
        self._logger = _make_logger(self._trt)
        self._timing_cache = b""  # TensorRT's measurements of kernels, for the next plan of this process
        self.runs_here = torch.cuda.is_available()
        self.device = torch.cuda.get_device_name() if self.runs_here else "no GPU"
        is_rtx = self._trt.__name__ != "tensorrt"
        # Nothing is timed without a GPU; TensorRT-RTX never does, as it makes its kernels when a plan is loaded.
        self._times_kernels = self.runs_here and not is_rtx
        self.route = "torch-tensorrt" if not is_rtx and _is_importable("torch_tensorrt") else "onnx"

    @property
    def fingerprint(self) -> str:
        package = f"{self._trt.__name__} {self._trt.__version__} {self.route} torch {torch.__version__}"
        device = gpu_fingerprint() if self.runs_here else "no GPU"
        options = {"tf32": self.precision != "fp32", "decode": self.precision_of(Stage.DECODE)}
        if self.route == "torch-tensorrt":
            options |= CONVERSION_OPTIONS
        return f"{self.name} {self.precision} {package} {device} {describe_options(options)}"

    def tolerance(self, stage: Stage) -> float:
        return plan_validation.tolerance(stage, self.precision_of(stage))

    def compile(self, spec: PlanSpec, network: nn.Module, folder: Path) -> None:
        """Write one engine for all buckets, or one for each."""
        precision = self.precision_of(spec.stage)
        typed = network if precision == "fp32" else lowered(network, DTYPES[precision])
        started_at = time.monotonic()
        if self.route == "onnx":
            (folder / ENGINE).write_bytes(self._parse(spec, typed))
        else:
            for bucket in spec.buckets:
                (folder / bucket_engine(bucket)).write_bytes(self._convert(spec, typed, bucket))
        logger.info(
            "plan %s: TensorRT built %.1f MB in %.1f s, at most %.0f MB of memory so far",
            spec,
            sum(file.stat().st_size for file in folder.iterdir()) / 1e6,
            time.monotonic() - started_at,
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        )

    def load(self, spec: PlanSpec, folder: Path, source: Callable[[], nn.Module]) -> Plan:
        if not self.runs_here:
            raise PlanError(f"plan {spec} of backend tensorrt runs on NVIDIA GPUs, and torch finds none")
        from msf_engine.backends.tensorrt_runtime import EngineNetwork

        network = EngineNetwork(self._trt, self._logger, spec)
        if self.route == "onnx":
            network.add(folder / ENGINE, spec.buckets)
        else:
            for bucket in spec.buckets:
                network.add(folder / bucket_engine(bucket), (bucket,))
        return DevicePlan(spec, network, torch.device("cuda"))

    def precision_of(self, stage: Stage) -> Precision:
        """Return the precision of a stage's network."""
        return "fp32" if stage is Stage.DECODE and self.precision == "bf16" else self.precision

    def _parse(self, spec: PlanSpec, network: nn.Module) -> bytes:
        trt = self._trt
        builder = trt.Builder(self._logger)
        # Version 11 and RTX have strongly typed networks only, and no flag for it.
        strongly_typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        parsed = builder.create_network(0 if strongly_typed is None else 1 << int(strongly_typed))
        parser = trt.OnnxParser(parsed, self._logger)
        with tempfile.TemporaryDirectory(prefix="msf-onnx-") as folder:
            file = Path(folder) / "network.onnx"
            export_onnx(spec, network, file)
            if not parser.parse_from_file(str(file)):
                problems = "; ".join(str(parser.get_error(number)) for number in range(parser.num_errors))
                raise PlanError(f"TensorRT cannot parse plan {spec}: {problems}")
            config = builder.create_builder_config()
            config.progress_monitor = _make_progress_monitor(trt, spec)
            for bucket in spec.buckets:
                config.add_optimization_profile(_profile(builder, parsed, bucket))
            if self.precision == "fp32":
                config.clear_flag(trt.BuilderFlag.TF32)
            if self._times_kernels:
                config.set_timing_cache(config.create_timing_cache(self._timing_cache), False)
            engine = builder.build_serialized_network(parsed, config)
            if engine is None:
                raise PlanError(f"TensorRT cannot build plan {spec}; its log has the reason")
            if self._times_kernels:
                self._timing_cache = bytes(config.get_timing_cache().serialize())
            return bytes(engine)

    def _convert(self, spec: PlanSpec, network: nn.Module, bucket: int) -> bytes:
        import torch_tensorrt

        shapes = [((bucket, *shape), getattr(torch, dtype)) for shape, dtype in spec.inputs]
        try:
            engine: bytes = torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine(
                export_program(spec, network, bucket),
                inputs=[torch_tensorrt.Input(shape=shape, dtype=dtype) for shape, dtype in shapes],
                disable_tf32=self.precision == "fp32",
                **CONVERSION_OPTIONS,
            )
        except Exception as error:  # its converters and TensorRT raise errors of any kind
            raise PlanError(f"Torch-TensorRT cannot build plan {spec} at bucket {bucket}: {error}") from error
        return bytes(engine)


def _profile(builder: Any, network: Any, bucket: int) -> Any:
    profile = builder.create_optimization_profile()
    for number in range(network.num_inputs):
        tensor = network.get_input(number)
        shape = (bucket, *tuple(tensor.shape)[1:])
        profile.set_shape(tensor.name, shape, shape, shape)
    return profile


def _make_logger(trt: ModuleType) -> Any:
    """Return a logger that passes TensorRT's messages on; a process keeps the first one that TensorRT gets."""
    levels = {trt.ILogger.INTERNAL_ERROR: logging.ERROR, trt.ILogger.ERROR: logging.ERROR}
    levels[trt.ILogger.WARNING] = logging.INFO

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            logger.log(levels.get(severity, logging.DEBUG), "TensorRT: %s", message)

    return Logger()


def _make_progress_monitor(trt: ModuleType, spec: PlanSpec) -> Any:
    """Return a monitor that logs the steps of the build's outermost phases."""

    class ProgressMonitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.num_steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self.num_steps[phase_name] = num_steps

        def phase_finish(self, phase_name: str) -> None:
            if self.num_steps.pop(phase_name, None) is not None:
                logger.info("plan %s: %s: done", spec, phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self.num_steps:
                logger.info("plan %s: %s: %d of %d", spec, phase_name, step + 1, self.num_steps[phase_name])
            return True

    return ProgressMonitor()


def _is_importable(name: str) -> bool:
    try:
        importlib.import_module(name)
    except Exception as error:
        logger.debug("%s cannot be used: %s", name, error)
        return False
    return True


BACKEND = TensorRtBackend

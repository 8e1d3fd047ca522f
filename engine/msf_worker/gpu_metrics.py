"""Memory, power and energy of the worker's GPU, read from NVIDIA's management library (NVML) at every scrape."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

logger = logging.getLogger(__name__)


class GpuCollector(Collector):
    """Metrics of one GPU; a value that it does not support is left out."""

    def __init__(self, nvml: Any, uuid: str) -> None:
        """`nvml` is the module pynvml, `uuid` the GPU's. Raises NVMLError."""
        nvml.nvmlInit()
        self._nvml = nvml
        self._handle = nvml.nvmlDeviceGetHandleByUUID(uuid)

    def collect(self) -> Iterable[Metric]:
        """Return the values that the GPU reports now."""
        nvml, handle = self._nvml, self._handle
        used = GaugeMetricFamily("msf_gpu_memory_used_bytes", "GPU memory in use, by any process")
        total = GaugeMetricFamily("msf_gpu_memory_bytes", "Total GPU memory")
        power = GaugeMetricFamily("msf_gpu_power_watts", "Power that the GPU draws")
        energy = CounterMetricFamily(
            "msf_gpu_energy_joules", "Energy that the GPU has used since its driver was loaded"
        )
        self._add(used, lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used)
        self._add(total, lambda: nvml.nvmlDeviceGetMemoryInfo(handle).total)
        self._add(power, lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000)
        self._add(energy, lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000)
        return used, total, power, energy

    def _add(self, metric: GaugeMetricFamily | CounterMetricFamily, read: Callable[[], float]) -> None:
        with suppress(self._nvml.NVMLError):
            metric.add_metric([], read())


def watch_gpu(registry: CollectorRegistry) -> None:
    """Report the GPU that torch computes on, if nvidia-ml-py is installed."""
    import torch

    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        logger.warning("no metrics of the GPU: pip install nvidia-ml-py")
        return
    try:
        registry.register(GpuCollector(nvml, f"GPU-{torch.cuda.get_device_properties(0).uuid}"))
    except nvml.NVMLError as error:
        logger.warning("no metrics of the GPU: %s", error)

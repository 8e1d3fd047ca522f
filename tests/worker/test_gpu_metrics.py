"""A worker reports its GPU's memory, power and energy; what a GPU does not support is left out."""

from __future__ import annotations

from types import SimpleNamespace

from prometheus_client import CollectorRegistry

from msf_worker.gpu_metrics import GpuCollector

UUID = "GPU-1c86c4cc-83c7-4a58-b4ae-9d7e0ac6ae33"


class FakeNvml:
    """The part of pynvml that is used, with one GPU; `energy_mj` None: it does not count energy."""

    class NVMLError(Exception):
        pass

    def __init__(self, energy_mj: int | None = 12_345_000) -> None:
        self._energy_mj = energy_mj
        self.is_initialized = False

    def nvmlInit(self) -> None:
        self.is_initialized = True

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if not self.is_initialized or uuid != UUID:
            raise self.NVMLError
        return uuid

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:
        return SimpleNamespace(total=80 * 2**30, used=3 * 2**30, free=77 * 2**30)

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return 412_500  # milliwatts

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        if self._energy_mj is None:
            raise self.NVMLError
        return self._energy_mj


def values(nvml: FakeNvml) -> dict[str, float]:
    registry = CollectorRegistry()
    registry.register(GpuCollector(nvml, UUID))
    return {sample.name: sample.value for metric in registry.collect() for sample in metric.samples}


def test_a_gpu_in_base_units() -> None:
    assert values(FakeNvml()) == {
        "msf_gpu_memory_used_bytes": 3 * 2**30,
        "msf_gpu_memory_bytes": 80 * 2**30,
        "msf_gpu_power_watts": 412.5,
        "msf_gpu_energy_joules_total": 12_345.0,
    }


def test_a_gpu_that_does_not_count_energy() -> None:
    assert "msf_gpu_energy_joules_total" not in values(FakeNvml(energy_mj=None))

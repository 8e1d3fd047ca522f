"""The whole service on this machine under load: latency, and the share of the time in which its device computes.

    python -m bench.gpu.service [--size B] [--rates 20,100]

serves a model of random weights with MSF_BACKEND, by `msf serve` with its own Valkey and one worker.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from bench.engine.random_models import random_model
from bench.engine.sizes import NUM_CLASSES, SIZES
from bench.gpu.cells import TINY, GpuNetwork
from bench.gpu.networks import network_config
from bench.local_stack import free_port, local_service, read_metric
from msf_engine.repository import save_version

MODEL = "random"
DURATION_S = 10
BUSY = "msf_device_busy_seconds_total"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="B", choices=(*SIZES, TINY))
    parser.add_argument("--rates", default="20,100", help="requests per second, one after the other")
    options = parser.parse_args()
    network = GpuNetwork("MSF", options.size, 64 if options.size == TINY else 256)
    with tempfile.TemporaryDirectory(prefix="msf-gpu-") as name:
        folder = Path(name)
        labels = [f"class {label}" for label in range(NUM_CLASSES)]
        model = random_model(network_config(network), torch.device("cpu"))
        save_version(folder / "repository", MODEL, "1", model, labels)
        metrics_port = free_port()
        settings = {
            "MSF_MODEL_REPO": str(folder / "repository"),
            "MSF_CACHE_DIR": str(folder / "cache"),
            "MSF_WORKER_METRICS_PORT": str(metrics_port),
        }
        try:
            with local_service(folder, None, **settings) as service:
                print(f"{network}: ready after {service.ready_after_s:.1f} s", flush=True)
                for rate in options.rates.split(","):
                    _load(service.url, f"http://127.0.0.1:{metrics_port}", rate)
        finally:
            print("the service's log:", (folder / "serve.log").read_text()[-2000:], sep="\n", file=sys.stderr)
    return 0


def _load(url: str, worker_url: str, rate: str) -> None:
    """Send a load, and print its report and the share. Raises CalledProcessError."""
    options = ("--url", url, "--rate", rate, "--duration-s", str(DURATION_S), "--alone-runs", "0")
    busy_s, started_at = read_metric(worker_url, BUSY), time.monotonic()
    subprocess.run((sys.executable, "-m", "msf_cli.main", "load", *options), check=True)
    share = (read_metric(worker_url, BUSY) - busy_s) / (time.monotonic() - started_at)
    print(f"{rate} requests per second: the device computes {share:.0%} of the time", flush=True)


if __name__ == "__main__":
    sys.exit(main())

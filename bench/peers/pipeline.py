"""The engine as a peer embeds it: bodies of image requests in, OpenAI's answers out, one batch at a time.

It has the service's plans, threads and PNG encoding, but no queue, step batching or leases. Besides its adapter, this
file is all that a peer's process imports from the benchmark.
"""

from __future__ import annotations

import json
import os
import time
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from msf_engine.executor import SampleRequest
from msf_engine.repository import ModelVersion, read_version
from msf_scheduler.jobs import JobSpec, Provenance
from msf_worker.image_encoder import encode_image
from msf_worker.settings import WorkerSettings

Pixels = NDArray[np.uint8]  # (H, W, channels)
Body = dict[str, Any]  # JSON of a request or an answer

PATH = "/v1/images/generations"
BATCH_SIZE = 16  # requests
BATCH_DELAY_S = 0.005  # wait of an incomplete batch, in servers with such a setting
TIMEOUT_S = 600  # of a request: an overload queues and is not refused
_VARIABLE = "BENCH_PEERS_PIPELINE"
_PROVENANCE = Provenance(fingerprint="0" * 64, reproducibility="strict")  # as long as the service's


@dataclass(frozen=True)
class PipelineOptions:
    """Choice of plans. With `noop`, all images are black: what remains is the server's own cost."""

    model: str
    settings: WorkerSettings
    noop: bool = False

    def environment(self) -> dict[str, str]:
        """Return the variable that `from_environment` reads."""
        fields = {"model": self.model, "noop": self.noop, "settings": self.settings.model_dump(mode="json")}
        return {_VARIABLE: json.dumps(fields)}

    @classmethod
    def from_environment(cls) -> Self:
        fields = json.loads(os.environ[_VARIABLE])
        return cls(fields["model"], WorkerSettings.model_validate(fields["settings"]), fields["noop"])


class Generate(Protocol):
    """Function that generates the images of samples, in their order."""

    def __call__(self, samples: Sequence[SampleRequest]) -> Sequence[Pixels]: ...


class Pipeline:
    """Answers batches of requests with a model's plans. Not thread-safe."""

    def __init__(self, options: PipelineOptions) -> None:
        self.version = read_version(options.settings.model_repo, options.model)
        self._generate = _noop_engine(self.version) if options.noop else load_engine(self.version, options.settings)

    @classmethod
    def from_environment(cls) -> Self:
        return cls(PipelineOptions.from_environment())

    def answer(self, bodies: Sequence[Body]) -> list[Body]:
        """Run all requests to their end. Requests with the same steps and guidance share the plans' batches."""
        specs = [job_spec(body, self.version) for body in bodies]
        files = iter(self.generate(specs))
        return [_answer(spec, [next(files) for _ in spec.indices]) for spec in specs]

    def generate(self, specs: Sequence[JobSpec]) -> list[bytes]:
        """Return the PNG files of all samples."""
        images = self._generate([sample for spec in specs for sample in samples_of(spec, self.version)])
        indices = [(spec, index) for spec in specs for index in spec.indices]
        return [
            encode_image(pixels, spec, index=index, provenance=_PROVENANCE)
            for pixels, (spec, index) in zip(images, indices, strict=True)
        ]


def load_engine(version: ModelVersion, settings: WorkerSettings) -> Generate:
    """Load the model's plans, or compile them if they are not cached."""
    from msf_engine.generate import generate
    from msf_engine.plan_cache import PlanCache
    from msf_engine.plan_loader import load_version

    cache = PlanCache(settings.cache_dir / "plans", settings.plan_cache_bytes)
    _, plans = load_version(version, settings.backend, settings.precision, settings.threads, cache, settings.buckets)
    return lambda samples: generate(plans, samples)


def job_spec(body: Body, version: ModelVersion) -> JobSpec:
    """Resolve a request's defaults."""
    config = version.config
    return JobSpec(
        model=version.name,
        version=version.version,
        label=int(body["prompt"]),
        num_samples=body.get("n", 1),
        seed=body["seed"],
        num_steps=body.get("num_steps", config.default_num_steps),
        guidance_scale=config.sampling.default_guidance_scale,
    )


def samples_of(spec: JobSpec, version: ModelVersion) -> list[SampleRequest]:
    steps = version.config.split_steps(spec.num_steps)
    return [SampleRequest(spec.label, spec.seed, index, steps, spec.guidance_scale) for index in spec.indices]


def _noop_engine(version: ModelVersion) -> Generate:
    image = version.config.image
    pixels = np.zeros((image.size, image.size, image.channels), np.uint8)
    return lambda samples: [pixels] * len(samples)


def _answer(spec: JobSpec, files: Sequence[bytes]) -> Body:
    """Return the fields of OpenAI's answer."""
    images = [
        {"b64_json": b64encode(file).decode(), "index": index} for index, file in zip(spec.indices, files, strict=True)
    ]
    return {
        "created": int(time.time()),
        "data": images,
        **spec.model_dump(include={"model", "version", "seed", "num_steps", "guidance_scale", "output_format"}),
    }

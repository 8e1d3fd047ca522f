"""A worker without a model: real queue and registry, drawings instead of samples."""

from __future__ import annotations

import asyncio
import io
import json
import math
import random
import time
from collections.abc import Sequence
from contextlib import suppress

from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from msf_scheduler.claims import Claim
from msf_scheduler.connection import connect
from msf_scheduler.jobs import JobError, JobSpec, ModelInfo, Provenance, Timings, WorkerInfo
from msf_scheduler.leases import Leases
from msf_scheduler.queue import JobQueue
from msf_scheduler.registry import Registry

LABELS = (
    "T-shirt",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
FASHION = ModelInfo(
    name="fashion",
    version="1",
    labels=LABELS,
    image_size=32,
    image_channels=1,
    default_num_steps=12,
    max_num_steps=100,
    default_guidance_scale=2.0,
    max_guidance_scale=10.0,
    description="Drawings of clothes.",
    created=1_700_000_000,
    fingerprint="drawing",
    strict_cost=0.0,
)
HEARTBEAT_S = 5.0
PROVENANCE = Provenance(fingerprint="drawing", reproducibility="strict")
TIMINGS = Timings(queue_ms=4.0, base_ms=30.0, residual_ms=22.5, decode_ms=12.0, encode_ms=2.0, total_ms=80.0)


class FakeWorker:
    """Runs until closed. While `holding`, it keeps what it claims; `failure` ends jobs as failed."""

    def __init__(self, redis_url: str, models: Sequence[ModelInfo] = (FASHION,)) -> None:
        redis = connect(redis_url)
        self.info = WorkerInfo(id="fake", host="here", pid=1, backend="drawing", num_slots=8, models=tuple(models))
        self.claiming = True
        self.holding = False
        self.failure: JobError | None = None
        self.claimed: list[Claim] = []
        self.lost: set[str] = set()
        self.registry = Registry(redis)
        self.queue = JobQueue(redis)
        self.leases = Leases(redis, fingerprints={(model.name, model.version): model.fingerprint for model in models})
        self._redis = redis
        self._running: asyncio.Task[None]

    async def __aenter__(self) -> FakeWorker:
        await self.registry.register(self.info)
        self._running = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._running.cancel()
        with suppress(asyncio.CancelledError):
            await self._running
        await self._redis.aclose()

    async def _run(self) -> None:
        models = [(model.name, model.version) for model in self.info.models]
        claims_held: list[Claim] = []
        heartbeat_at = time.monotonic() + HEARTBEAT_S
        while True:
            if time.monotonic() > heartbeat_at:
                await self.registry.heartbeat(self.info.id)
                heartbeat_at = time.monotonic() + HEARTBEAT_S
            for model in models if self.claiming else ():
                terms = (claim.job.terms for claim in claims_held if claim.job.spec.model == model[0])
                result = await self.leases.claim(
                    self.info.id,
                    *model,
                    budget_steps=10_000,
                    held={(each.priority, each.tenant) for each in terms},
                    max_samples=64,
                    idle=not claims_held,
                )
                claims = result.claims
                self.claimed += claims
                claims_held += claims
            self.lost |= await self.leases.renew(self.info.id, claims_held)
            claims_held = [claim for claim in claims_held if claim.job.id not in self.lost]
            if not self.holding:
                await asyncio.gather(*(self._finish(claim) for claim in claims_held))
                claims_held = []
            await self.leases.wait_for_work(models, (), timeout_s=0.02 if claims_held else 0.2)

    async def _finish(self, claim: Claim) -> None:
        if self.failure is not None:
            await self.leases.fail(claim, self.failure)
        else:
            await self.leases.succeed(claim, draw(claim.job.spec), TIMINGS, PROVENANCE)


def draw(spec: JobSpec) -> list[bytes]:
    """Return the files of a job; the same spec gives the same bytes."""
    return [_draw_one(spec, index) for index in spec.indices]


def _draw_one(spec: JobSpec, index: int) -> bytes:
    generator = random.Random(f"{spec.seed} {index} {spec.label} {spec.negative_label}")
    image = Image.new("L", (32, 32), 12)
    pen = ImageDraw.Draw(image)
    for ring in range(9, 1, -1):
        points = [
            (
                16 + (ring * 1.6 * generator.uniform(0.7, 1.0)) * math.cos(2 * math.pi * corner / (spec.label + 3)),
                16 + (ring * 1.6 * generator.uniform(0.7, 1.0)) * math.sin(2 * math.pi * corner / (spec.label + 3)),
            )
            for corner in range(spec.label + 3)
        ]
        pen.polygon(points, fill=generator.randrange(60, 256))
    file = io.BytesIO()
    image.save(
        file, spec.output_format, **({"pnginfo": _png_metadata(spec, index)} if spec.output_format == "png" else {})
    )
    return file.getvalue()


def _png_metadata(spec: JobSpec, index: int) -> PngInfo:
    """Return the metadata that a worker writes into PNGs."""
    names = ("model", "version", "label", "seed", "num_steps", "guidance_scale")
    parameters = {**{name: getattr(spec, name) for name in names}, "index": index, **PROVENANCE.model_dump()}
    info = PngInfo()
    info.add_text("msf:parameters", json.dumps(parameters))
    return info

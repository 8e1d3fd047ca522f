"""The scheduler's data: what a job asks for, what it became, and what workers offer."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from msf_scheduler.stage import Stage

SCHEMA_VERSION = 2  # of a stored job

ModelKey = tuple[str, str]  # name, version

OutputFormat = Literal["png", "webp", "jpeg"]

Reproducibility = Literal["strict", "fast"]

MAX_INDEX = 2**31 - 1
MAX_SEED = 2**53 - 1  # the largest integer that every JSON client carries exactly


class Record(BaseModel):
    """Base of everything stored in Redis as JSON.

    A field that a newer release wrote is passed over: old and new processes work side by side during a roll-out.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")


class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def is_terminal(self) -> bool:
        return self not in (JobState.QUEUED, JobState.RUNNING)


class Priority(StrEnum):
    """Priority classes, the first to be served first."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"

    @property
    def rank(self) -> int:
        """Position among the classes, from 0."""
        return list(Priority).index(self)


class JobSpec(Record):
    """Everything that determines a job's bytes; defaults are resolved before admission."""

    model: str
    version: str
    label: int
    num_samples: int = Field(ge=1)
    seed: int = Field(ge=0, le=MAX_SEED)
    first_index: int = Field(default=0, ge=0, le=MAX_INDEX)  # of the samples; (seed, index) fixes a sample's noise
    num_steps: int = Field(ge=2)  # both stages together; the model's config says how they share it
    guidance_scale: float
    reproducibility: Reproducibility | None = None  # None: strict where that costs the worker little
    output_format: OutputFormat = "png"
    output_compression: int | None = Field(default=None, ge=0, le=100)  # quality, where the format has one

    @property
    def indices(self) -> range:
        """Of its samples."""
        return range(self.first_index, self.first_index + self.num_samples)


class Terms(Record):
    """How a job is to be treated; nothing here changes its bytes.

    Tenants share the device by `weight`; the users of a tenant take turns. `timeout_s` covers queue and execution.
    """

    priority: Priority = Priority.NORMAL
    tenant: str = ""
    user: str = ""
    weight: float = Field(default=1.0, gt=0)
    timeout_s: float | None = Field(default=None, gt=0)
    traceparent: str | None = None  # of the span that admitted it
    num_previews: int = Field(default=0, ge=0)  # of each sample, on its way
    webhook_url: str | None = None  # told of the job's end


class Timings(Record):
    """Where a job's time went, in milliseconds.

    `queue` ends when the first sample joins a step batch; the stages are the wall time of the step batches that the
    job rode in; `total` runs from admission to the stored result, so it exceeds the sum by the waiting in between.
    """

    queue_ms: float
    base_ms: float
    residual_ms: float
    decode_ms: float
    encode_ms: float
    total_ms: float


class Progress(Record):
    """How far a running job is. Steps are those of all its samples, each sample's decode counted as one."""

    stage: Literal[Stage.BASE, Stage.RESIDUAL, Stage.DECODE]  # of the sample that is least far
    steps_done: int
    num_steps: int
    samples_done: int


class Preview(Record):
    """What a stored preview shows: a sample by its index, for the n-th time (from 0, which is the base alone)."""

    index: int
    number: int


class Provenance(Record):
    """What made a result. `strict`: by this fingerprint, the same job gives the same bytes whatever is in the batch."""

    fingerprint: str
    reproducibility: Reproducibility


class JobError(Record):
    """Why a job failed: `code` is stable for programs, `message` is for people."""

    code: str
    message: str


class Delivery(Record):
    """How far a job's webhook has come. `problem` is the last attempt's."""

    state: Literal["pending", "delivered", "failed"]
    num_attempts: int
    problem: str | None = None


class JobRecord(Record):
    """A job as stored: spec, state and history. Times are Unix seconds by Redis's clock."""

    schema_version: int = SCHEMA_VERSION
    id: str
    spec: JobSpec
    terms: Terms = Terms()
    state: JobState
    attempt: int = 0  # how often it was claimed
    admitted_at: float
    deadline_at: float | None = None
    claimed_at: float | None = None  # by the latest attempt
    finished_at: float | None = None
    is_suspect: bool = False  # workers died while they ran it, so it runs alone
    bound_to: str | None = None  # the fingerprint of the only workers that may run it, as strict jobs have
    leader: str | None = None  # the identical job whose work, once done, is also this one's
    images_of: str | None = None  # the identical job whose files are also this one's
    is_watched: bool = False  # its worker tells how far it is
    progress: Progress | None = None
    provenance: Provenance | None = None
    delivery: Delivery | None = None
    timings: Timings | None = None
    error: JobError | None = None


class LeastSeconds(Record):
    """The fastest that a worker was ever measured, in seconds: what no deadline can be below."""

    step_s: float = 0.0  # one denoising step of a sample
    sample_step_s: float = 0.0  # a sample's part of a step in the bucket that suits the device best
    decode_s: float = 0.0

    def bound_s(self, num_steps: int, num_samples: int) -> float:
        """No job of so many samples can be done sooner."""
        return max(num_steps * self.step_s, num_samples * num_steps * self.sample_step_s) + self.decode_s


class ModelInfo(Record):
    """What the server must know of a model version to validate a request; registered by workers."""

    name: str
    version: str
    labels: tuple[str, ...]
    image_size: int
    image_channels: Literal[1, 3, 4]
    default_num_steps: int
    max_num_steps: int
    default_guidance_scale: float
    max_guidance_scale: float
    description: str = ""
    created: int = 0  # Unix seconds, for OpenAI's `created`
    least: LeastSeconds = LeastSeconds()
    fingerprint: str = ""  # of all that a result's bytes depend on
    strict_cost: float | None = None  # what strict jobs take more, as a share of a step; None: they cannot be run


class WorkerLoad(Record):
    """What a worker does, as of a heartbeat.

    `batch_fill`: samples over rows since the heartbeat before; images and latencies are of the last minute's jobs.
    None: there were none.
    """

    num_slots: int
    num_slots_in_use: int
    batch_fill: float | None = None
    images_per_s: float = 0.0
    p50_ms: float | None = None
    p99_ms: float | None = None


class WorkerInfo(Record):
    """One worker process as it registers itself."""

    id: str
    host: str
    pid: int
    backend: str  # what runs the plans, for people
    num_slots: int
    models: tuple[ModelInfo, ...]

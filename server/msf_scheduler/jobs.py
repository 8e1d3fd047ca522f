"""Data of the scheduler: jobs, their results, and the workers and models that run them."""

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

    Unknown fields are ignored: processes of two releases run next to each other during a rolling update.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")


class JobState(StrEnum):
    """States of a job."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def is_terminal(self) -> bool:
        """True once the job has ended."""
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
    num_steps: int = Field(ge=1)  # of all stages; the model's config divides them
    guidance_scale: float
    negative_label: int | None = None  # class that guidance steers away from, in the place of the null label
    reproducibility: Reproducibility | None = None  # None: strict where that costs the worker little
    output_format: OutputFormat = "png"
    output_compression: int | None = Field(default=None, ge=0, le=100)  # quality, where the format has one

    @property
    def indices(self) -> range:
        """Indices of the samples."""
        return range(self.first_index, self.first_index + self.num_samples)


class Terms(Record):
    """Treatment of a job, which never changes its bytes.

    Tenants share the device by `weight`; the users of a tenant take turns. `timeout_s` covers queue and execution.
    """

    priority: Priority = Priority.NORMAL
    tenant: str = ""
    user: str = ""
    weight: float = Field(default=1.0, gt=0)
    timeout_s: float | None = Field(default=None, gt=0)
    traceparent: str | None = None  # of the span that admitted it
    num_previews: int = Field(default=0, ge=0)  # of each sample, before it is done
    webhook_url: str | None = None  # gets the end of the job

    def served_as(self, other: Terms) -> Terms:
        """Return these terms with the share of the device that `other` has: its priority, tenant, user and weight."""
        return self.model_copy(update={name: getattr(other, name) for name in ("priority", "tenant", "user", "weight")})


class Timings(Record):
    """Time that a job spent in each part, in milliseconds.

    `queue` ends when the first sample joins a step batch; the stages are the wall time of the step batches that the
    job was in; `total` runs from admission to the stored result, so it exceeds the sum by the waits between steps.
    """

    queue_ms: float
    base_ms: float = 0.0
    residual_ms: float = 0.0
    denoise_ms: float = 0.0
    decode_ms: float
    encode_ms: float
    total_ms: float

    def stage_ms(self, stage: Stage) -> float:
        """Return the time of a stage; 0 for one that the model lacks."""
        value: float = getattr(self, f"{stage}_ms")
        return value


class Progress(Record):
    """Progress of a running job. Steps are those of all its samples, with each sample's decode counted as one."""

    stage: Stage  # of the least advanced sample
    steps_done: int
    num_steps: int
    samples_done: int


class Preview(Record):
    """Sample that a stored preview shows, and the preview's number from 0."""

    index: int
    number: int


class Provenance(Record):
    """Origin of a result. `strict`: with this fingerprint, the same job gives the same bytes in any batch."""

    fingerprint: str
    reproducibility: Reproducibility


class JobError(Record):
    """Reason why a job failed: `code` is stable for programs, `message` is for people."""

    code: str
    message: str


class Delivery(Record):
    """Delivery of a job's webhook. `problem` is that of the last attempt."""

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
    attempt: int = 0  # times it was claimed
    admitted_at: float
    deadline_at: float | None = None
    claimed_at: float | None = None  # by the latest attempt
    finished_at: float | None = None
    is_suspect: bool = False  # workers died while running it, so it runs alone
    bound_to: str | None = None  # fingerprint of the only workers that may run it; only strict jobs have one
    leader: str | None = None  # identical job whose future result is also this job's
    images_of: str | None = None  # identical job whose files are also this job's
    is_watched: bool = False  # its worker publishes progress and previews
    progress: Progress | None = None
    provenance: Provenance | None = None
    delivery: Delivery | None = None
    timings: Timings | None = None
    error: JobError | None = None


class FastestTimes(Record):
    """Shortest times that a worker ever measured, in seconds; deadlines below them are refused."""

    step_s: float = 0.0  # one denoising step of a sample
    sample_step_s: float = 0.0  # a sample's share of a step in the most efficient bucket
    decode_s: float = 0.0

    def bound_s(self, num_steps: int, num_samples: int) -> float:
        """Return the shortest time that a job can take."""
        return max(num_steps * self.step_s, num_samples * num_steps * self.sample_step_s) + self.decode_s


class ModelInfo(Record):
    """Facts about a model version that servers need to validate requests; registered by workers."""

    name: str
    version: str
    labels: tuple[str, ...]
    image_size: int
    image_channels: Literal[1, 3, 4]
    default_num_steps: int
    min_num_steps: int = 2
    max_num_steps: int
    default_guidance_scale: float
    max_guidance_scale: float
    takes_negative: bool = True  # whether guidance can steer away from another class
    teacher: str | None = None  # version that this one was distilled from
    description: str = ""
    created: int = 0  # Unix seconds, for OpenAI's `created`
    least: FastestTimes = FastestTimes()
    fingerprint: str = ""  # of all that a result's bytes depend on
    strict_cost: float | None = None  # relative cost of strict jobs; None: they cannot be run


class WorkerLoad(Record):
    """Load of a worker at a heartbeat.

    `batch_fill`: samples over rows since the previous heartbeat; images and latencies are of the last minute's jobs.
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
    backend: str  # runtime of the plans, for people
    num_slots: int
    models: tuple[ModelInfo, ...]

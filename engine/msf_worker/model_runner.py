"""One model version in a worker: its executor, and the measured costs of its steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

from msf_engine.executor import Executor, SampleRequest
from msf_engine.repository import ModelVersion
from msf_engine.sampling import SampleNoise
from msf_scheduler.claims import Claim
from msf_scheduler.jobs import JobSpec, ModelInfo, ModelKey, Provenance
from msf_scheduler.stage import Stage
from msf_scheduler.step_costs import StepCost, StepCosts, StepPattern
from msf_worker.active_job import ActiveJob, pattern_of
from msf_worker.image_encoder import runtime_fingerprint
from msf_worker.model_info import model_info

MAX_CHEAP_STRICT_COST = 0.05  # extra share of a step's time up to which strict is the default


class ModelRunner:
    """A model version that is ready to serve; its executor belongs to the device thread."""

    def __init__(self, model: ModelVersion, executor: Executor) -> None:
        plans = executor.plans
        self.model = model
        self.executor = executor
        measured = [StepCost(stage, bucket, s, 0.0) for (stage, bucket), s in plans.seconds.items()]
        self.costs = StepCosts(plans.buckets, measured, plans.strict, model.config.all_stages)
        self.fingerprint = runtime_fingerprint(plans.fingerprint)
        self.strict_cost = self.costs.strict_cost()
        self.pattern = lru_cache(maxsize=1024)(self._pattern)
        self.load_s = self.build_s = 0.0  # until it could serve; of that, until its plans were in the cache

    @property
    def key(self) -> ModelKey:
        """Name and version of the model."""
        return self.model.name, self.model.version

    def info(self) -> ModelInfo:
        """Describe this model for the servers."""
        return model_info(self.model, self.costs, self.fingerprint, self.strict_cost)

    def steps_per_s(self) -> float:
        """Return the steps per second, decodes included, of full batches of default requests; 0 before any was run."""
        config = self.model.config
        pattern = self.pattern(config.default_num_steps, config.sampling.default_guidance_scale)
        work_s = self.costs.work_s(pattern)
        return len(pattern.stages) / work_s if work_s else 0.0

    def make_jobs(self, claims: Sequence[Claim]) -> Iterator[tuple[ActiveJob, float]]:
        """Yield the jobs of claims, ready for the device thread, and the seconds that each takes there.

        The noise of all is computed in one call, which for small jobs takes a fraction of the time.
        """
        if not claims:
            return
        specs = [claim.job.spec for claim in claims]
        seeds, indices = zip(*((spec.seed, index) for spec in specs for index in spec.indices), strict=True)
        noise, start = SampleNoise.of(self.model.config, seeds, indices), 0
        for claim, spec in zip(claims, specs, strict=True):
            own = noise.rows(range(start, start + spec.num_samples))
            start += spec.num_samples
            work_s = spec.num_samples * self.costs.work_s(self.pattern(spec.num_steps, spec.guidance_scale))
            yield ActiveJob(claim, self.model.config, self._provenance(spec), own), work_s

    def warm_up_runs(self) -> Iterator[int]:
        """Run each bucket of each stage once, and yield it, so that the device can do other work in between."""
        executor, decode_buckets = self.executor, self.executor.plans.buckets[Stage.DECODE]
        stages = self.model.config.denoising_stages
        one_step = (1,) * len(stages)
        for bucket in executor.plans.buckets[stages[0]]:
            num_samples = min(bucket, executor.num_free_slots)
            slots = executor.join([SampleRequest(0, 0, index, one_step, 1.0) for index in range(num_samples)])
            for _ in stages:
                executor.step(slots, bucket)
                yield bucket
            decoded = slots[: decode_buckets[-1]]
            executor.step(decoded, min(bucket, decode_buckets[-1]))
            for slot in slots[len(decoded) :]:
                executor.leave(slot)
            yield bucket

    def _pattern(self, num_steps: int, guidance_scale: float) -> StepPattern:
        return pattern_of(self.model.config, num_steps, guidance_scale)

    def _provenance(self, spec: JobSpec) -> Provenance:
        """Strict if the job says so, or if it says nothing and strict costs little here."""
        is_cheap = self.strict_cost is not None and self.strict_cost <= MAX_CHEAP_STRICT_COST
        return Provenance(
            fingerprint=self.fingerprint, reproducibility=spec.reproducibility or ("strict" if is_cheap else "fast")
        )

"""Exhaustive sweep of strict buckets: whether a sample's bytes depend on its batch.

    python -m bench.engine.sweep

runs every sample in every row of every bucket, next to other samples, copies of itself (padding), rows of NaN,
infinities, zeros and huge numbers, fifty times. The short form of this sweep runs when a plan is built and determines
the buckets for strict jobs. Prints both results per plan; fails if the short form allowed a bucket that is not strict.
"""

from __future__ import annotations

import argparse
import sys
import time

from tabulate import tabulate

from msf_cli.loading import load_model
from msf_cli.settings import read_settings
from msf_engine.model_plans import ModelPlans
from msf_engine.plan import stage_inputs
from msf_engine.plan_validation import FULL, FULL_REPEATS, equal_buckets, make_validation_inputs, sweep
from msf_engine.repository import find_models


def sweep_plans(plans: ModelPlans, num_repeats: int) -> tuple[list[list[str]], bool]:
    """Return a line per plan, and whether the short form agrees."""
    lines, agrees = [], True
    for stage, plan in plans.by_stage.items():
        started_at = time.monotonic()
        embed = plans.time_embeddings.get(stage)
        inputs = make_validation_inputs(stage_inputs(plans.config, stage), plans.config.num_classes, embed)
        digests = {
            bucket: sweep(plan, inputs, bucket, FULL, repeats=num_repeats).row_digest for bucket in plans.buckets[stage]
        }
        strict, short_form = equal_buckets(digests), plans.strict[stage]
        agrees &= not short_form or any(set(short_form) <= set(buckets) for buckets in strict)
        sets = "; ".join(",".join(map(str, buckets)) for buckets in strict) or "none"
        lines.append([str(stage), sets, ",".join(map(str, short_form)), f"{time.monotonic() - started_at:.0f}"])
        print(f"{stage}: {sets}", file=sys.stderr, flush=True)
    return lines, agrees


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=FULL_REPEATS)
    arguments = parser.parse_args()
    settings = read_settings()
    all_agree = True
    for version in find_models(settings.model_repo):
        backend, plans = load_model(settings, version)
        rows, agrees = sweep_plans(plans, arguments.repeats)
        all_agree &= agrees
        print(f"{version}, {backend.fingerprint}\n{arguments.repeats} repeats\n")
        head = ["plan", "strict buckets", "by the short form", "seconds"]
        print(tabulate(rows, head, tablefmt="github", disable_numparse=True), "\n")
    if not all_agree:
        sys.exit("the short form allowed a bucket that is not strict")


if __name__ == "__main__":
    main()

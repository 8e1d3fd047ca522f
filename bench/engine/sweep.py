"""Exhaustive sweep of strict buckets: whether a sample's bytes depend on its batch.

    python -m bench.engine.sweep

runs every probe in every slot of every bucket, next to other probes, copies of itself (padding), rows of NaN,
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
from msf_engine.model_plans import ModelPlans, plan_kinds
from msf_engine.plan_validation import FULL, FULL_REPEATS, equal_buckets, sweep, validation_inputs
from msf_engine.repository import find_models


def sweep_plans(plans: ModelPlans, num_repeats: int) -> tuple[list[list[str]], bool]:
    """Return a row per kind of plan, and whether the short form agrees."""
    rows, agrees = [], True
    for stage, guided in plan_kinds(plans.config):
        started_at = time.monotonic()
        probes = validation_inputs(plans.config, plans.time_embeddings, stage)
        digests = {
            bucket: sweep(plans.by_kind[stage, guided][bucket], probes, bucket, FULL, num_repeats)
            for bucket in plans.buckets
        }
        strict, short_form = equal_buckets(digests), plans.strict[stage, guided]
        agrees &= not short_form or any(set(short_form) <= set(buckets) for buckets in strict)
        name = f"{stage}{' guided' if guided else ''}"
        sets = "; ".join(",".join(map(str, buckets)) for buckets in strict) or "none"
        rows.append([name, sets, ",".join(map(str, short_form)), f"{time.monotonic() - started_at:.0f}"])
        print(f"{name}: {sets}", file=sys.stderr, flush=True)
    return rows, agrees


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

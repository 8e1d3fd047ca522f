"""`make sweep`: in which buckets a sample's bytes depend on its batch, tried at length.

Every probe in every slot of every bucket, beside other probes, copies of itself (padding), rows of NaN, infinities,
zeros and huge numbers, fifty times. The short form of the same runs when a plan is built and decides which buckets
strict jobs may use; this one says whether that was right.
"""

from __future__ import annotations

import argparse
import sys
import time

from msf_cli.loading import load_model
from msf_cli.settings import read_settings
from msf_engine.model_plans import plan_kinds
from msf_engine.plan_loader import probes_of
from msf_engine.plan_validation import FULL, FULL_REPEATS, strict_sets, sweep
from msf_engine.repository import find_models


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=FULL_REPEATS)
    arguments = parser.parse_args()
    settings = read_settings()
    agrees = True
    for version in find_models(settings.model_repo):
        backend, plans = load_model(settings, version)
        print(f"{version}, {backend.fingerprint}\n{arguments.repeats} repeats\n")
        print("| plan | buckets alike | by the short form | seconds |\n|---|---|---|---|")
        for stage, guided in plan_kinds(plans.config):
            started_at = time.monotonic()
            probes = probes_of(plans.config, plans.time_embeddings, stage)
            rows = {}
            for bucket in plans.buckets:
                rows[bucket] = sweep(plans.by_kind[stage, guided][bucket], probes, bucket, FULL, arguments.repeats)
            found, claimed = strict_sets(rows), plans.strict[stage, guided]
            agrees &= any(set(claimed) <= set(alike) for alike in found) or not claimed
            shown = "; ".join(",".join(map(str, alike)) for alike in found) or "none"
            seconds = time.monotonic() - started_at
            print(
                f"| {stage}{' guided' if guided else ''} | {shown} | {','.join(map(str, claimed))} | {seconds:.0f} |",
                flush=True,
            )
    if not agrees:
        sys.exit("a bucket that the short form took for strict is not")


if __name__ == "__main__":
    main()

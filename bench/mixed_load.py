"""The mixed load of the benchmarks: mostly short requests, a few long ones, some for several images."""

from __future__ import annotations

from msf_cli.load.mix import Mix, parse_weighted

MIX = Mix(num_steps=parse_weighted("4:4,20:4,100:1", int), num_samples=parse_weighted("1:9,4:1", int))

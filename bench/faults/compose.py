"""`make compose-test`: the stack of docker-compose.yml, for real, under load, while its parts are killed and replaced.

Needs Docker and its Compose plugin. Every accepted job is asked for until it ends; a job that is lost, or that ends
otherwise than with its images, fails the test.
"""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpx

from bench.local_stack import MODEL

URL = "http://127.0.0.1:8000"
PROMETHEUS = "http://127.0.0.1:9090"
SERVICES = ("redis", "server", "worker", "prometheus")
IMAGES = ("server", "worker")
TIMEOUT_S = 300.0
JOB = {"model": MODEL, "n": 2, "num_steps": 12}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--services", default=",".join(SERVICES), help="of docker-compose.yml")
    parser.add_argument("--rate", type=float, default=2.0, help="jobs a second")
    parser.add_argument("--keep", action="store_true", help="leave the stack up")
    arguments = parser.parse_args()
    try:
        _run(arguments.services.split(","), arguments.rate)
    finally:
        if not arguments.keep:
            compose("down", "--volumes", "--timeout", "5")


def _run(services: list[str], rate: float) -> None:
    started_at = time.monotonic()
    compose("up", "--build", "--detach", "--wait", *services)
    print(f"| up, with images built | {time.monotonic() - started_at:.0f} s |")
    for image in IMAGES:
        size = docker("image", "inspect", "--format", "{{.Size}}", f"msf-serve/{image}")
        print(f"| image {image} | {int(size) / 1e6:.0f} MB |")
    until(lambda: httpx.get(f"{URL}/v2/health/ready").status_code == 200)
    print(f"| first image | {time.monotonic() - started_at:.0f} s |" if _image() else "")
    load = Load(rate)
    load.start()
    for name, disturb in DISTURBANCES.items():
        began_at = time.monotonic()
        settled = load.num_succeeded + 5
        disturb()
        until(partial(load.has_made, settled))
        print(f"| {name} | images again after {time.monotonic() - began_at:.0f} s |", flush=True)
    ends = load.stop()
    print(f"| jobs | {sum(ends.values())} accepted: {dict(ends)} |")
    if "prometheus" in services:
        until(_all_are_scraped)
        until(_all_rules_are_evaluated)
        print("| Prometheus | finds and scrapes every process, evaluates every rule |")
    if set(ends) != {"succeeded"}:
        sys.exit("a job that was accepted did not succeed")


def _all_are_scraped() -> bool:
    """Each container of the stack that has metrics is found by DNS and answers."""
    answer = httpx.get(f"{PROMETHEUS}/api/v1/query", params={"query": "sum(up) by (job)"}).json()
    found = {row["metric"]["job"]: int(row["value"][1]) for row in answer["data"]["result"]}
    return found == {job: len(compose("ps", "--quiet", job).splitlines()) for job in ("server", "worker")}


def _all_rules_are_evaluated() -> bool:
    groups = httpx.get(f"{PROMETHEUS}/api/v1/rules").json()["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    return bool(rules) and all(rule["health"] == "ok" for rule in rules)


def _image() -> bool:
    answer = httpx.post(f"{URL}/v1/images/generations", json={"model": MODEL, "prompt": "sneaker"}, timeout=TIMEOUT_S)
    return bool(answer.raise_for_status().json()["data"])


# What happens to the stack


def kill(service: str) -> None:
    """As the kernel would, behind Docker's back: its restart policy has to notice."""
    container = compose("ps", "--quiet", service).splitlines()[0]
    os.kill(int(docker("inspect", "--format", "{{.State.Pid}}", container)), signal.SIGKILL)


def roll() -> None:
    """A new image beside the old one, then without it."""
    old = compose("ps", "--quiet", "worker").splitlines()
    docker("build", "--quiet", "--tag", "msf-serve/worker", "-", stdin="FROM msf-serve/worker\nLABEL release=next\n")
    compose("up", "--detach", "--no-deps", "--no-recreate", "--wait", "--scale", f"worker={len(old) + 1}", "worker")
    docker("stop", "--time", "40", *old)
    docker("rm", *old)
    compose("up", "--detach", "--no-deps", "--wait", "server")


DISTURBANCES: dict[str, Callable[[], object]] = {
    "kill -9 of the worker": lambda: kill("worker"),
    "kill -9 of the server": lambda: kill("server"),
    "restart of redis": lambda: compose("restart", "redis"),
    "kill -9 of redis": lambda: kill("redis"),
    "three workers": lambda: compose("up", "--detach", "--no-deps", "--wait", "--scale", "worker=3", "worker"),
    "roll to a new image": roll,
}


@dataclass
class Load:
    """Jobs at a steady rate, each under an idempotency key of its own, sent again until its acceptance is known."""

    rate: float
    num_succeeded: int = 0
    _accepted: set[str] = field(default_factory=set)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _all_sent: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)
    _ends: Counter[str] = field(default_factory=Counter)

    def start(self) -> None:
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._send, self._follow)]
        for thread in self._threads:
            thread.start()

    def has_made(self, num_jobs: int) -> bool:
        return self.num_succeeded >= num_jobs

    def stop(self) -> Counter[str]:
        """How all accepted jobs ended."""
        sender, follower = self._threads
        self._stopping.set()
        sender.join(TIMEOUT_S)
        self._all_sent.set()
        follower.join(TIMEOUT_S)
        return self._ends + Counter({"lost": len(self._accepted)})

    def _send(self) -> None:
        for number in itertools.count():
            if self._stopping.wait(1 / self.rate):
                return
            body = {"prompt": str(number % 10), "seed": number, **JOB}
            headers = {"Idempotency-Key": f"job-{number}"}
            answer = _persistently(partial(httpx.post, f"{URL}/v1/jobs", json=body, headers=headers))
            self._accepted.add(answer["id"])

    def _follow(self) -> None:
        while self._accepted or not self._all_sent.is_set():
            for job_id in list(self._accepted):
                job = _persistently(partial(httpx.get, f"{URL}/v1/jobs/{job_id}"))
                if job["status"] not in ("queued", "running"):
                    has_images = job["data"] is not None and len(job["data"]) == JOB["n"]
                    self._ends[job["status"] if has_images else f"{job['status']} without images"] += 1
                    self.num_succeeded += has_images
                    self._accepted.discard(job_id)
            time.sleep(0.05)


def _persistently(ask: Callable[[], httpx.Response]) -> dict[str, Any]:
    """Ask again while the server is away or says that it cannot now."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            answer = ask()
            if answer.status_code < 300:
                found: dict[str, Any] = answer.json()
                return found
            problem = answer.text
        except httpx.TransportError as error:
            problem = str(error)
        if time.monotonic() > deadline:
            sys.exit(f"no answer: {problem}")
        time.sleep(0.1)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            if condition():
                return
        except httpx.TransportError:
            pass
        if time.monotonic() > deadline:
            sys.exit("it does not come to be in time")
        time.sleep(0.2)


def compose(*arguments: str) -> str:
    return docker("compose", *arguments)


def docker(*arguments: str, stdin: str | None = None) -> str:
    done = subprocess.run(("docker", *arguments), input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"docker {' '.join(arguments)}: {done.stderr[-3000:]}")
    return done.stdout.strip()


if __name__ == "__main__":
    main()

"""Check everything that needs an NVIDIA GPU, in a few minutes on a machine without network.

    python -m bench.gpu.check --out FOLDER [--wheels FOLDER] [--dry-run]

runs the most important part first, each within its own time limit: the tests marked `gpu`, the benchmark, the whole
service under load, TensorRT. A part's output is in FOLDER as it comes, and a table of all is printed last. `--wheels`
has wheels of what the machine lacks. `--dry-run` goes through all parts on the CPU with tiny networks.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MARKERS = "[pytest]\nmarkers =\n    gpu: needs an NVIDIA GPU\n    slow: takes more than ten seconds\n"


@dataclass(frozen=True)
class Part:
    """A command with a limit, and the environment that it adds."""

    name: str
    command: tuple[str, ...]
    limit_s: float
    environment: Mapping[str, str]


def parts(out: Path, scratch: Path, *, is_dry_run: bool) -> list[Part]:
    """Return the parts, most important first."""
    ini = scratch / "pytest.ini"  # the project's own asks for plugins that other machines lack
    ini.write_text(MARKERS)
    pytest = (
        "-m",
        "pytest",
        "-c",
        str(ini),
        "--rootdir",
        ".",
        "--confcutdir",
        "tests/engine",
        "-p",
        "no:cacheprovider",
    )
    arenas, tensorrt = "tests/engine/test_device_arenas.py", "tests/engine/test_tensorrt.py"
    marked = ("-m", "not gpu", "-k", "generate") if is_dry_run else ("-m", "gpu")
    bench = ("--out", str(out / "bench.jsonl"), "--summary", str(out / "bench.md"))
    kind = ("--cpu", "--minutes", "0.5") if is_dry_run else ("--short", "--minutes", "3.5")
    service = ("--size", "tiny", "--rates", "1") if is_dry_run else ("--size", "B", "--rates", "20,100")
    hidden = {"CUDA_VISIBLE_DEVICES": "", "MSF_BUCKETS": "2"} if is_dry_run else {}
    quick_to_load = {"MSF_BACKEND": "eager", "MSF_PRECISION": "bf16"}
    return [
        Part("tests", (*pytest, *marked, arenas), 150, hidden),
        Part("bench", ("-m", "bench.gpu", *kind, *bench), 260, hidden),
        Part("service", ("-m", "bench.gpu.service", *service), 120, {**hidden, **quick_to_load}),
        Part("tensorrt", (*pytest, "-m", "gpu", tensorrt), 90, hidden),
    ]


def run(part: Part, out: Path, path: str) -> str:
    """Run a part, its output in a file; return how it ended."""
    log = out / f"{part.name}.log"
    started_at = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            (sys.executable, *part.command),
            env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **part.environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(part.limit_s)
            outcome = "passed" if status == 0 else f"failed with status {status}"
        except subprocess.TimeoutExpired:
            outcome = f"stopped at its limit of {part.limit_s:g} s"
        _end_group(process)
    lines = log.read_text(errors="replace").splitlines()
    last_line = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f"| {part.name} | {outcome} | {time.monotonic() - started_at:.0f} | {last_line[:150].replace('|', '/')} |"


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill what a part leaves running; a service first gets the time to end its own processes."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def install(wheels: Path, folder: Path) -> None:
    """Install wheels into a folder, without network. Raises CalledProcessError."""
    options = ("--quiet", "--no-index", "--no-deps", "--no-compile", "--target", str(folder))
    subprocess.run(
        (sys.executable, "-m", "pip", "install", *options, *map(str, sorted(wheels.glob("*.whl")))), check=True
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu.check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("gpu_check"), help="folder of the results (default: gpu_check)"
    )
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install first, for this run alone")
    parser.add_argument("--dry-run", action="store_true", help="go through all parts on the CPU")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    table = ["| part | outcome | seconds | last line |", "| --- | --- | --- | --- |"]
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        scratch = Path(folder)
        if options.wheels is not None:
            install(options.wheels, scratch / "site")
        path = os.pathsep.join(["engine", "server", ".", str(scratch / "site"), os.environ.get("PYTHONPATH", "")])
        for part in parts(options.out, scratch, is_dry_run=options.dry_run):
            table.append(run(part, options.out, path))
            print(table[-1], flush=True)
            (options.out / "summary.md").write_text("\n".join(table) + "\n")
    print("\n" + "\n".join(table))
    bench = options.out / "bench.md"
    if bench.exists():
        print(bench.read_text())
    return 0 if all("| passed |" in row for row in table[2:]) else 1


if __name__ == "__main__":
    sys.exit(main())

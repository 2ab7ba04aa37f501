"""Runs all tests and measurements of the GPU in parts of limited length, on a machine available for minutes only.

A part that fails or takes too long does not keep the next from running. Each part adds to one log, and writes its
records at once. All parts together end within a time. build/gpu-package (`make gpu-package`) is used if that folder
exists and loads; otherwise igfast is built.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "build" / "gpu-package"
SMOKE = """
import captum.attr, igfast, torch
from igfast.ops import build_info
print(torch.__version__, torch.version.cuda, torch.get_num_threads(), "threads", build_info())
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(),
    torch.nn.MaxPool2d(2), torch.nn.Flatten(), torch.nn.Linear(8 * 15 * 15, 5)).eval().double().to(device)
x = torch.randn(2, 3, 32, 32, device=device, dtype=torch.float64)
got, report = igfast.IntegratedGradients(network).attribute(x, target=1, return_report=True)
wanted = captum.attr.IntegratedGradients(network).attribute(x, target=1)
print(report)
print("difference from Captum:", float((got - wanted).norm() / wanted.norm()))
"""
PRECOMPILE = """
import sys, torch
from benchmarks.gpu_cases import Workload, compiled_call
device, steps, name, dtype = torch.device("cuda"), int(sys.argv[1]), sys.argv[2], getattr(torch, sys.argv[3])
compiled_call(Workload(name, 1, dtype), device, steps)()
"""
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Part:
    """A command, and the most seconds that it may take.

    Attributes:
        name: also of its log.
        seconds: after which it is stopped.
        command: what is run in the project's folder.
        environment: beside the process's own.
    """

    name: str
    seconds: int
    command: Sequence[str]
    environment: tuple[tuple[str, str], ...] = ()


def parts(out: Path, on_cpu: bool, compiled: Sequence[str], networks: Sequence[str]) -> list[Part]:
    """All parts, in order."""
    python = sys.executable
    bench = [python, "-m", "benchmarks.bench_gpu", "--out", str(out)]
    small = ["--cpu", "--megabytes", "1"] if on_cpu else []
    some = ["--networks", *(["MLP of 6 layers"] if on_cpu else networks)] if on_cpu or networks else []
    gpu_tests = [python, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider"]
    gpu_tests += ["tests/gpu", "tests/attr/test_same_on_gpu.py"]
    required = () if on_cpu else (("IGFAST_REQUIRE_GPU", "1"),)
    sanitizer = ["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "1", "--report-api-errors", "no"]
    kernels = [python, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", "tests/gpu/test_ops.py"]
    one_each = ["-m", "gpu and not large", "-k", "float32 or dtype2 or same_every_time or not_finite"]
    return [
        Part("smoke", 40, [python, "-c", SMOKE]),
        Part("tests", 150, gpu_tests, required),
        Part("operators", 40, [*bench, "--parts", "operators", *small]),
        Part("networks", 150, [*bench, "--parts", "networks", *small, *some, "--compiled", *compiled]),
        *([] if on_cpu else [Part("image", 60, [*bench, "--parts", "image"])]),
        Part(
            "sanitizer",
            100,
            [*([] if on_cpu else sanitizer), *kernels, *one_each],
            (("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"), *required),
        ),
        Part("choices", 110, [*bench, "--parts", "choices", *small, *some]),
    ]


@dataclass
class Runner:
    """Runs parts one after the other, with their output in one log.

    Attributes:
        log: the file.
        environment: of all parts.
        deadline: when the last part is stopped, of `time.monotonic`.
    """

    log: Path
    environment: dict[str, str]
    deadline: float

    def run(self, part: Part) -> bool:
        """Runs a part; whether it succeeded. Its processes end with it, also where this one is told to end."""
        began = time.monotonic()
        seconds = min(part.seconds, self.deadline - began)
        if seconds <= 0:
            print(f"== {part.name}: no time left", flush=True)
            return False
        with self.log.open("a") as file:
            print(f"\n== {part.name}: {' '.join(map(str, part.command))}", file=file, flush=True)
            try:
                status = self._status(part, seconds, file)
            except OSError as error:  # there is no such command
                status = f"{type(error).__name__}: {error}"
        print(f"== {part.name}: {status}, {time.monotonic() - began:.0f} s", flush=True)
        print("\n".join(self.log.read_text(errors="replace").splitlines()[-3:]), flush=True)
        return status == "exit 0"

    def _status(self, part: Part, seconds: float, file: Any) -> str:
        process = subprocess.Popen(
            part.command,
            cwd=ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**self.environment, **dict(part.environment)},
            start_new_session=True,
        )
        try:
            return f"exit {process.wait(seconds)}"
        except subprocess.TimeoutExpired:
            return f"stopped after {seconds:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def digest_of_sources() -> str:
    """A number of the C++ and CUDA sources, by which a package tells that it was built from them."""
    sources = sorted(path for path in (ROOT / "csrc").rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.read_bytes() for path in (*sources, ROOT / "setup.py"))).hexdigest()


def use_package(environment: dict[str, str]) -> None:
    """Puts the package's operators into the source folder and its other files on the path, if there is one.

    Operators that are older than their sources are not used: the smoke test fails then, and igfast is built.
    """
    if not PACKAGE.exists():
        return
    environment["PYTHONPATH"] = os.pathsep.join([str(PACKAGE), environment.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    record = PACKAGE / "sources"
    for built in (PACKAGE / "built").rglob("_C*.so"):
        if record.exists() and record.read_text() == digest_of_sources():
            shutil.copy(built, ROOT / "igfast")
        else:
            print("== the package's operators were built from other sources", flush=True)


def precompile(compiled: Sequence[str], environment: dict[str, str]) -> list[subprocess.Popen[bytes]]:
    """Fills the cache of torch.compile while tests run, so that the measurement need not wait for it."""
    commands = ([sys.executable, "-c", PRECOMPILE, "50", name, dtype] for name in compiled for dtype in DTYPES)
    return [subprocess.Popen(command, cwd=ROOT, env=environment) for command in commands]


def wait_for(processes: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    """Waits for processes to end, and kills those that take too long."""
    deadline = time.monotonic() + seconds
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()


def main() -> None:
    """Runs all parts, or some."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the folder of the log and the records")
    parser.add_argument("--parts", nargs="+", help="their names; all without")
    parser.add_argument("--seconds", nargs="*", default=[], help="other limits, as part=seconds")
    parser.add_argument("--within", type=float, default=570, help="seconds that all parts together may take")
    parser.add_argument("--compiled", nargs="*", default=[], help="networks that Captum has compiled, too")
    parser.add_argument("--networks", nargs="*", default=[], help="those to measure; all without")
    parser.add_argument("--cpu", action="store_true", help="to try it out, with small sizes")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # an exception, so that the parts' processes end too
    options.out.mkdir(parents=True, exist_ok=True)
    out = options.out.resolve()
    limits = dict(pair.split("=") for pair in options.seconds)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "TORCHINDUCTOR_CACHE_DIR": "/tmp/igfast-inductor"}
    if not options.cpu:
        environment["IGFAST_REQUIRE_KERNELS"] = "1"
    use_package(environment)
    runner = Runner(out / "log.txt", environment, time.monotonic() + options.within)
    all_parts = parts(out, options.cpu, options.compiled, options.networks)
    smoke, chosen = all_parts[0], [part for part in all_parts[1:] if part.name in (options.parts or [part.name])]
    if not runner.run(smoke) and not options.cpu:
        build = [sys.executable, "setup.py", "--quiet", "egg_info", "build_ext", "--inplace", "--force"]
        runner.run(Part("build", 150, build, (("IGFAST_CUDA", "1"), ("TORCH_CUDA_ARCH_LIST", "9.0"))))
        runner.run(smoke)
    compiling = precompile([] if options.cpu else options.compiled, environment)
    try:
        for part in chosen:
            if part.name in ("operators", "choices", "networks"):  # which must have the GPU for themselves
                wait_for(compiling, min(120, runner.deadline - time.monotonic()))
            runner.run(replace(part, seconds=int(limits.get(part.name, part.seconds))))
    finally:
        wait_for(compiling, 0)


if __name__ == "__main__":
    main()

"""Loads a build with CUDA kernels, on any machine, and says whether they are there: `make cuda-check`."""

import importlib.util
import sys
import sysconfig
from pathlib import Path

import torch

OPERATORS = ("interpolate", "accumulate_", "scale_", "lean_gate", "lean_gate_", "lean_max_pool")


def main() -> None:
    """Takes the build's folder."""
    built = Path(sys.argv[1], "igfast", f"_C{sysconfig.get_config_var('EXT_SUFFIX')}")
    spec = importlib.util.spec_from_file_location("igfast._C", built)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    info = module.build_info()
    if not info["cuda"]:
        raise SystemExit(f"{built} has no CUDA kernels: {info}")
    for name in OPERATORS:
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"igfast::{name}", "CUDA"):
            raise SystemExit(f"{built}: igfast::{name} has no CUDA kernel")
    print(f"{len(OPERATORS)} operators with CUDA kernels for compute capabilities {info['cuda_architectures']}")


if __name__ == "__main__":
    main()

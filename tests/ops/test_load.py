"""Loading the compiled operators: the wrong build, no build, and every instruction set."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import igfast
from igfast.ops import _load, build_info


def test_build_info_says_what_was_built():
    info = build_info()
    assert info["version"] == igfast.__version__
    assert info["torch"] == torch.__version__.split("+")[0]
    assert set(info) == {"version", "torch", "compiler", "isa", "cuda", "cuda_architectures"}


def test_build_for_another_torch_is_refused(tmp_path):
    extension = tmp_path / "_C.so"
    extension.write_bytes(b"\x7fELF...igfast-built-for-torch=1.2.3;...")
    with pytest.raises(
        igfast.KernelsError,
        match=r"built for torch 1\.2\.3, but torch 2\.0\.0\+cpu is running. Rebuild them: pip install",
    ):
        _load.check_built_for(extension, "2.0.0+cpu")
    _load.check_built_for(extension, "1.2.3+cu130")


def test_a_newer_torch_than_tested_warns_once(monkeypatch):
    assert not _load.is_untested(f"{'.'.join(map(str, _load._NEWEST_TESTED))}.9+cpu")
    assert _load.is_untested("2.99.0.dev20300101+cu200")
    assert _load.is_untested("3.0.0")
    monkeypatch.setattr(_load, "_NEWEST_TESTED", (1, 13))
    with pytest.warns(igfast.IgfastWarning, match=r"tested up to torch 1\.13, and torch .* is running"):
        assert _load.kernels_loaded.__wrapped__()


def test_the_mark_is_in_the_real_extension():
    origin = importlib.util.find_spec("igfast._C").origin
    assert _load.built_for_torch(Path(origin)) == torch.__version__.split("+")[0]


def test_a_file_without_the_mark_is_refused(tmp_path):
    extension = tmp_path / "_C.so"
    extension.write_bytes(b"something else")
    with pytest.raises(igfast.KernelsError, match="is not an igfast extension"):
        _load.built_for_torch(extension)


@pytest.mark.parametrize(
    ("info", "text"),
    [
        ({"cuda": False, "cuda_architectures": ""}, "built without CUDA kernels, and has none for cuda:0; with nvcc"),
        ({"cuda": True, "cuda_architectures": "7.5,10.0+PTX"}, "built for compute capabilities 7.5,10.0.PTX, and has"),
    ],
)
def test_a_cuda_device_that_the_build_is_not_for(monkeypatch, info, text):
    monkeypatch.setattr(_load, "build_info", lambda: info)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    monkeypatch.delenv("IGFAST_REQUIRE_KERNELS", raising=False)
    of_device, device = _load.kernels_for.__wrapped__, torch.device("cuda:0")
    with pytest.warns(UserWarning, match=text):
        assert not of_device(device)
    assert of_device(torch.device("cpu"))
    assert not of_device(torch.device("meta"))
    monkeypatch.setenv("IGFAST_REQUIRE_KERNELS", "1")
    with pytest.raises(igfast.KernelsError, match="rebuild: IGFAST_CUDA=1 pip install"):
        of_device(device)
    monkeypatch.setenv("IGFAST_REQUIRE_KERNELS", "true")
    with pytest.raises(igfast.KernelsError):
        of_device(device)
    monkeypatch.setenv("IGFAST_REQUIRE_KERNELS", "0")
    with pytest.warns(UserWarning, match=text):
        assert not of_device(device)
    monkeypatch.setattr(_load, "build_info", lambda: {"cuda": True, "cuda_architectures": "8.0,9.0"})
    assert of_device(device)


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        ("8.0", (8, 0), True),
        ("8.0", (8, 6), True),
        ("8.6", (8, 0), False),
        ("8.0,9.0", (10, 0), False),
        ("8.0,9.0+PTX", (12, 0), True),
        ("9.0+PTX", (8, 9), False),
        ("9.0a", (9, 0), True),
        ("", (9, 0), False),
    ],
)
def test_which_devices_a_build_runs_on(architectures, capability, runs):
    assert _load.runs_on(architectures, capability) is runs


def run_without_kernels(**environment):
    code = """
import importlib.util
import sys
sys.modules["igfast._C"] = None
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "igfast._C" else find(name, *a)
import torch, igfast
net = torch.nn.Linear(3, 2)
x = torch.randn(2, 3)
print(igfast.IntegratedGradients(net).attribute(x, target=0).allclose(x * net.weight[0], atol=1e-6))
"""
    inherited = {k: v for k, v in os.environ.items() if k != "IGFAST_REQUIRE_KERNELS"}
    return subprocess.run(
        [sys.executable, "-c", code], env={**inherited, **environment}, capture_output=True, text=True, check=False
    )


def test_without_kernels_plain_pytorch_is_used_and_said_once():
    finished = run_without_kernels()
    assert finished.stdout.strip() == "True"
    assert finished.stderr.count("IgfastWarning: igfast's compiled operators are not built") == 1


def test_without_kernels_but_required_is_an_error():
    finished = run_without_kernels(IGFAST_REQUIRE_KERNELS="1")
    assert finished.returncode != 0
    assert "KernelsError: igfast's compiled operators are not built; build them: pip" in finished.stderr


def run_tests(names, **environment):
    """Test files again, in a process of another environment."""
    files = [str(Path(__file__).parent / f"{name}.py") for name in names]
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files, "-k", "not opcheck"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout[-3000:]


@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_operators_on_narrower_instruction_sets(isa):
    lean = "../lean/test_max_pool", "../lean/test_winograd"
    run_tests(("test_interpolate", "test_accumulate", "test_scale", *lean), IGFAST_CPU_ISA=isa)

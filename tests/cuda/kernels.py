"""csrc/cuda compiled for the CPU, thread after thread, behind the signatures of igfast.ops.

It shows that indices, dtypes, layouts and sums are right. What only a device can show, races between threads, alignment
and speed, is for tests/gpu.
"""

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
DTYPES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2, torch.float64: 3}
ACTIVATIONS = {"relu": 0, "hardtanh": 1, "leaky_relu": 2, "threshold": 3}
i32, i64, f64, pointer = ctypes.c_int32, ctypes.c_int64, ctypes.c_double, ctypes.c_void_p


def struct(**fields):
    return type("Args", (ctypes.Structure,), {"_fields_": list(fields.items())})


# csrc/kernels.h
Baseline = struct(data=pointer, stride=i64, is_number=ctypes.c_bool)
InterpolateArgs = struct(
    dtype=i32, n_rows=i64, n_examples=i64, n_features=i64, x=pointer, baseline=Baseline, example=pointer,
    alpha=pointer, out=pointer,
)  # fmt: skip
AccumulateArgs = struct(
    dtype=i32, n_rows=i64, n_examples=i64, n_features=i64, acc=pointer, grads=pointer, example=pointer,
    weight=pointer, finite=pointer, n_parts=i64, links=pointer, sorted=pointer,
    order=pointer,
)  # fmt: skip
ScaleArgs = struct(dtype=i32, n_examples=i64, n_features=i64, acc=pointer, x=pointer, baseline=Baseline)
GateArgs = struct(
    dtype=i32,
    n_elements=i64,
    from_=pointer,
    to=pointer,
    bits=pointer,
    activation=i32,
    low=f64,
    high=f64,
    slope=f64,
)
BatchNormArgs = struct(
    dtype=i32,
    channels_last=ctypes.c_bool,
    n_channels=i64,
    n_positions=i64,
    n_elements=i64,
    from_=pointer,
    to=pointer,
    weight=pointer,
    bias=pointer,
    mean=pointer,
    variance=pointer,
    eps=f64,
)
MaxPoolArgs = struct(
    dtype=i32,
    channels_last=ctypes.c_bool,
    n_batch=i64,
    n_channels=i64,
    input=i64 * 3,
    output=i64 * 3,
    kernel=i64 * 3,
    stride=i64 * 3,
    padding=i64 * 3,
    dilation=i64 * 3,
    from_=pointer,
    to=pointer,
    cell=pointer,
)


@functools.cache
def library(*defined):
    """The kernels, compiled with these macros, in four seconds."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++, which compiles the CUDA kernels for the CPU")
    built = Path(tempfile.mkdtemp()) / "kernels.so"
    command = [compiler, "-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    command += [f"-D{name}" for name in defined]
    sources = [f"-I{HERE / 'emulated'}", "-x", "c++", str(HERE / "emulated" / "kernels.cpp")]
    if subprocess.run([*command, *sources, "-o", str(built)], check=False).returncode != 0:
        pytest.exit("the CUDA kernels do not compile for the CPU: tests/cuda/emulated", returncode=1)
    loaded = ctypes.CDLL(str(built))
    shutil.rmtree(built.parent)
    for name in (
        "interpolate",
        "accumulate",
        "scale",
        "gate",
        "gate_grad",
        "batch_norm",
        "batch_norm_grad",
        "max_pool",
        "max_pool_grad",
    ):
        getattr(loaded, name).restype = ctypes.c_char_p
    return loaded


def run(name, *args, defined=()):
    failure = getattr(library(*defined), name)(*args)
    assert failure is None, failure


def baseline_of(baseline, n_features):
    """Of a contiguous baseline."""
    is_shared = baseline.dim() == 0 or len(baseline) == 1
    return Baseline(baseline.data_ptr(), 0 if is_shared else n_features, baseline.dim() == 0)


def interpolate(x, baseline, example, alpha):
    """Of contiguous tensors."""
    n_features = x[0].numel()
    out = torch.full((len(example), *x.shape[1:]), float("nan")).to(x.dtype)
    args = InterpolateArgs(
        DTYPES[x.dtype], len(example), len(x), n_features, x.data_ptr(), baseline_of(baseline, n_features),
        example.data_ptr(), alpha.data_ptr(), out.data_ptr(),
    )  # fmt: skip
    run("interpolate", ctypes.byref(args))
    return out


def accumulate_(acc, grads, example, weight, finite=None, by_sorting=False):
    """Of contiguous tensors."""
    links = torch.full((len(acc) + len(grads),), -1)
    marks = None if finite is None else finite.data_ptr()
    sorted_, order = torch.sort(example, stable=True)
    given = (sorted_.data_ptr(), order.data_ptr()) if by_sorting else (None, None)
    args = AccumulateArgs(
        DTYPES[grads.dtype], len(grads), len(acc), acc[0].numel(), acc.data_ptr(), grads.data_ptr(),
        example.data_ptr(), weight.data_ptr(), marks, 1, links.data_ptr(), *given,
    )  # fmt: skip
    run("accumulate", ctypes.byref(args))


def scale_(acc, x, baseline):
    """Of contiguous tensors."""
    n_features = x[0].numel()
    args = ScaleArgs(
        DTYPES[x.dtype], len(x), n_features, acc.data_ptr(), x.data_ptr(), baseline_of(baseline, n_features)
    )
    run("scale", ctypes.byref(args))


def gate(x, activation, low=0.0, high=0.0, slope=0.0):
    """The activation, the bits, and a function from gradients to gradients."""
    bits = torch.full((-(-x.numel() // 256) * 32,), 0xAA, dtype=torch.uint8)
    y = torch.empty_like(x)

    def call(name, from_, to):
        args = GateArgs(
            DTYPES[x.dtype], x.numel(), from_.data_ptr(), to.data_ptr(), bits.data_ptr(), ACTIVATIONS[activation],
            low, high, slope,
        )  # fmt: skip
        run(name, ctypes.byref(args))
        return to

    return call("gate", x, y), bits, lambda grad: call("gate_grad", grad, torch.empty_like(grad))


def batch_norm(name, x, weight, bias, mean, variance, eps):
    """The batch norm of x, or the gradient of one."""
    to = torch.full_like(x, float("nan"))
    constants = [None if of is None else of.data_ptr() for of in (weight, bias, mean, variance)]
    args = BatchNormArgs(
        DTYPES[x.dtype], not x.is_contiguous(), x.shape[1], x[0, 0].numel(), x.numel(), x.data_ptr(), to.data_ptr(),
        *constants, eps,
    )  # fmt: skip
    run(name, ctypes.byref(args))
    return to


def max_pool(x, output_sizes, kernel, stride, padding, dilation, defined=()):
    """3-d: the largest cells, their numbers, and a function from gradients of the output to those of the input."""
    channels_last = not x.is_contiguous()
    memory_format = torch.channels_last_3d if channels_last else torch.contiguous_format
    output = torch.full((*x.shape[:2], *output_sizes), float("nan"), dtype=x.dtype).to(memory_format=memory_format)
    cells = torch.full_like(output, 255, dtype=torch.uint8)

    def call(name, from_, to):
        triples = [(i64 * 3)(*t) for t in (x.shape[2:], output_sizes, kernel, stride, padding, dilation)]
        args = MaxPoolArgs(
            DTYPES[x.dtype], channels_last, *x.shape[:2], *triples, from_.data_ptr(), to.data_ptr(), cells.data_ptr()
        )
        run(name, ctypes.byref(args), defined=defined)
        return to

    return call("max_pool", x, output), cells, lambda grad: call("max_pool_grad", grad, torch.full_like(x, torch.nan))

"""500 random calls against the naive loop: shapes, tuples, baselines, targets, methods, chunk sizes, dtypes."""

import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

import igfast
from tests.oracle import naive_integrated_gradients

BOUND = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def make_forward(n_inputs, output_shape, dtype):
    """A smooth function of any number of inputs, different in every output: (batch, *output_shape)."""
    n_outputs = max(1, torch.Size(output_shape).numel())

    def forward(*arguments):
        inputs, scale = arguments[:n_inputs], arguments[n_inputs] if len(arguments) > n_inputs else None
        total = 0
        for k, x in enumerate(inputs):
            flat = x.reshape(x.shape[0], -1)
            mixing = torch.linspace(-1, 1, flat.shape[1] * n_outputs, dtype=x.dtype).reshape(-1, n_outputs)
            total = total + torch.tanh(flat @ mixing * (0.5 + k))
        total = total * (1 + total)
        if scale is not None:
            total = total * scale.reshape(-1, 1)
        return total.reshape(-1, *output_shape)

    return forward


@st.composite
def calls(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dtype = draw(st.sampled_from([torch.float64] * 5 + [torch.float32] * 2 + [torch.float16, torch.bfloat16]))

    def tensor(shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    batch = draw(st.integers(1, 5))
    shapes = draw(st.lists(st.lists(st.integers(1, 4), min_size=0, max_size=4), min_size=1, max_size=3))
    inputs = tuple(tensor((batch, *shape)) for shape in shapes)
    if draw(st.booleans()):
        inputs = tuple(x.transpose(1, -1) if x.dim() > 2 else x for x in inputs)
    baselines = tuple(draw(st.sampled_from([0, 0.25, tensor((1, *x.shape[1:])), tensor(x.shape)])) for x in inputs)
    output_shape = draw(st.sampled_from([(), (1,), (3,), (2, 3)]))
    if output_shape in ((), (1,)):
        target = None
    elif output_shape == (3,):
        one, each = st.integers(-3, 2), st.lists(st.integers(-3, 2), min_size=batch, max_size=batch)
        target = draw(st.one_of(one, each, each.map(torch.tensor)))
    else:
        place = st.tuples(st.integers(-2, 1), st.integers(-3, 2))
        target = draw(st.one_of(place, st.lists(place, min_size=batch, max_size=batch)))
    method = draw(st.sampled_from(igfast.METHODS))
    n_steps = draw(st.integers(2 if "trapezoid" in method else 1, 9))
    return {
        "inputs": inputs,
        "bare": len(inputs) == 1 and draw(st.booleans()),
        "baselines": baselines,
        "no_baselines": draw(st.booleans()),
        "target": target,
        "scale": draw(st.sampled_from([None, tensor((batch, 1)).abs(), tensor((1, 1)).abs()])),
        "output_shape": output_shape,
        "method": method,
        "n_steps": n_steps,
        "internal_batch_size": draw(st.one_of(st.none(), st.integers(1, 12))),
        "multiply_by_inputs": draw(st.booleans()),
    }


def select(output, target):
    """The target's number of each example, by plain indexing."""
    if target is None:
        return output.reshape(output.shape[0])
    places = list(target) if isinstance(target, (list, torch.Tensor)) else [target] * output.shape[0]
    places = [place if isinstance(place, tuple) else (int(place),) for place in places]
    return torch.stack([output[(e, *place)] for e, place in enumerate(places)])


@seed(20170304)  # the day the paper was submitted: the same 500 calls in every run
@settings(max_examples=500, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(calls())
def test_equals_naive_loop(call):
    inputs, dtype = call["inputs"], call["inputs"][0].dtype
    forward = make_forward(len(inputs), call["output_shape"], dtype)
    starts = tuple(0 for _ in inputs) if call["no_baselines"] else call["baselines"]
    got, delta = igfast.IntegratedGradients(forward, call["multiply_by_inputs"]).attribute(
        inputs[0] if call["bare"] else inputs,
        None if call["no_baselines"] else (starts[0] if call["bare"] else starts),
        call["target"],
        call["scale"],
        n_steps=call["n_steps"],
        method=call["method"],
        internal_batch_size=call["internal_batch_size"],
        return_convergence_delta=True,
    )

    exact_inputs = tuple(x.double() for x in inputs)
    exact_starts = tuple(
        (b.double().expand(x.shape) if isinstance(b, torch.Tensor) else torch.full_like(x, b))
        for b, x in zip(starts, exact_inputs, strict=True)
    )
    scale = () if call["scale"] is None else (call["scale"].double(),)
    exact_forward = make_forward(len(inputs), call["output_shape"], torch.float64)

    def value(*points):
        return select(exact_forward(*points, *scale), call["target"])

    wanted = naive_integrated_gradients(
        value, exact_inputs, exact_starts, call["n_steps"], call["method"], call["multiply_by_inputs"]
    )
    assert isinstance(got, torch.Tensor) == call["bare"]
    got = (got,) if call["bare"] else got
    assert all(g.dtype == (torch.float64 if dtype is torch.float64 else torch.float32) for g in got)
    size = max(float(torch.cat([w.reshape(-1) for w in wanted]).norm()), 1.0)
    difference = torch.cat([(g.double() - w).reshape(-1) for g, w in zip(got, wanted, strict=True)]).norm()
    assert float(difference) <= BOUND[dtype] * size
    wanted_delta = sum(w.reshape(w.shape[0], -1).sum(1) for w in wanted) - (value(*exact_inputs) - value(*exact_starts))
    assert float((delta.double() - wanted_delta).abs().max()) <= 4 * BOUND[dtype] * size

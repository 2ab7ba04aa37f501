"""Baselines of numbers: what they hold, on which device and of which dtype, and what bad input gets."""

import numpy as np
import pytest
import torch

import igfast
from igfast import baselines

IMAGES = torch.rand(2, 3, 8, 6, generator=torch.Generator().manual_seed(0))
MAKERS = {
    "zeros": baselines.zeros,
    "constant": lambda x: baselines.constant(x, [0.1, 0.2, 0.3]),
    "black": lambda x: baselines.black(x, [0.5, 0.4, 0.3], 0.2),
    "white": baselines.white,
    "uniform": baselines.uniform,
    "gaussian": lambda x: baselines.gaussian(x, 0.1),
    "blurred": lambda x: baselines.blurred(x, 2.0),
    "maximum distance": baselines.maximum_distance,
    "mean": lambda x: baselines.data_mean(x, IMAGES.to(x.dtype)),
    "random": lambda x: baselines.random_inputs(x, IMAGES.to(x.dtype)),
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_shape_dtype_and_inputs_stay(name, dtype):
    x = IMAGES.to(dtype)
    before = x.clone()
    made = MAKERS[name](x)
    assert made.shape == x.shape
    assert made.dtype == dtype
    assert torch.equal(x, before)
    made.add_(1)  # writable, and no view of the inputs
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", MAKERS)
def test_attributes(name):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(144, 3))
    x = IMAGES
    _, delta = igfast.IntegratedGradients(net).attribute(x, MAKERS[name](x), 1, return_convergence_delta=True)
    assert delta.abs().max() < 1e-5


def test_colours():
    assert torch.equal(baselines.constant(IMAGES, 0.25), torch.full_like(IMAGES, 0.25))
    black = baselines.black(IMAGES, mean=[0.5, 0.4, 0.3], std=[0.1, 0.2, 0.5])
    torch.testing.assert_close(black[1, :, 3, 2], torch.tensor([-5.0, -2.0, -0.6]))
    white = baselines.white(IMAGES, mean=[0.5, 0.4, 0.3], std=[0.1, 0.2, 0.5])
    torch.testing.assert_close(white[0, :, 0, 5], torch.tensor([5.0, 3.0, 1.4]))


def test_noise_is_seeded_and_leaves_the_generator():
    state = torch.random.get_rng_state()
    for make in (baselines.uniform, lambda x, seed: baselines.gaussian(x, 1.0, seed=seed)):
        assert torch.equal(make(IMAGES, seed=1), make(IMAGES, seed=1))
        assert not torch.equal(make(IMAGES, seed=1), make(IMAGES, seed=2))
    baselines.random_inputs(IMAGES, IMAGES, seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_uniform_noise_stays_within_each_examples_bounds():
    x = torch.stack([IMAGES[0], 10 + IMAGES[1]])
    noise = baselines.uniform(x)
    assert noise[0].min() >= x[0].min()
    assert noise[0].max() <= x[0].max()
    assert noise[1].min() >= 10
    assert noise.flatten(1).std(dim=1).min() > 0.2


def test_blur_is_that_of_a_gaussian_and_keeps_constants():
    x = torch.zeros(1, 1, 41, 41, dtype=torch.float64)
    x[0, 0, 20, 20] = 1
    blurred = baselines.blurred(x, 3.0)
    line = np.array(
        [np.exp(-((p - 20) ** 2) / 18) / sum(np.exp(-((p - q) ** 2) / 18) for q in range(41)) for p in range(41)]
    )
    expected = np.outer(line, line)
    np.testing.assert_allclose(blurred[0, 0].numpy(), expected, atol=1e-12)
    constant = torch.full((1, 2, 9, 5), 0.3, dtype=torch.float64)
    torch.testing.assert_close(baselines.blurred(constant, 4.0), constant)


def test_maximum_distance_takes_the_farther_bound():
    x = torch.tensor([[0.0, 0.4, 1.0], [2.0, 3.0, 6.0]])
    assert baselines.maximum_distance(x).tolist() == [[1.0, 1.0, 0.0], [6.0, 6.0, 2.0]]
    assert baselines.maximum_distance(x, low=-1, high=7).tolist() == [[7.0, 7.0, 7.0], [7.0, 7.0, -1.0]]


def test_data():
    data = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    x = torch.zeros(4, 2)
    assert baselines.data_mean(x, data).tolist() == [[2.0, 4.0]] * 4
    drawn = baselines.random_inputs(x, data, seed=1).tolist()
    assert all(row in data.tolist() for row in drawn)
    assert len({tuple(row) for seed in range(5) for row in baselines.random_inputs(x, data, seed=seed).tolist()}) == 2


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: baselines.zeros(torch.ones(2, dtype=torch.int64)), igfast.InputTypeError, "inputs must be a floating"),
        (lambda: baselines.zeros([1.0]), igfast.InputTypeError, "got a list"),
        (lambda: baselines.zeros(torch.tensor(1.0)), igfast.InputError, "examples as its first dimension"),
        (lambda: baselines.constant(IMAGES, [1.0, 2.0]), igfast.ArgumentError, "value must be a number, or one for"),
        (lambda: baselines.black(IMAGES, std=0), igfast.ArgumentError, "std must be positive"),
        (lambda: baselines.black(IMAGES, mean=[0.1]* 4), igfast.ArgumentError, "mean must be a number, or one for"),
        (lambda: baselines.uniform(IMAGES, 1, 0), igfast.ArgumentError, "low must not be above high; got 1 and 0"),
        (lambda: baselines.gaussian(IMAGES, -1), igfast.ArgumentError, "std must not be negative; got -1"),
        (lambda: baselines.blurred(IMAGES, 0), igfast.ArgumentError, "sigma must be positive; got 0"),
        (lambda: baselines.blurred(IMAGES[0], 1), igfast.InputError, r"inputs must be images, \(batch, channels"),
        (lambda: baselines.data_mean(IMAGES, IMAGES[:, :2]), igfast.ArgumentError, r"\(rows, 3, 8, 6\)"),
        (lambda: baselines.random_inputs(IMAGES, IMAGES[:0]), igfast.ArgumentError, "data must have rows"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_other_default_devices():
    x = torch.rand(2, 3)
    with torch.device("meta"):
        assert igfast.baselines.uniform(x).device.type == "cpu"
        assert igfast.baselines.gaussian(x, 0.1).device.type == "cpu"
        assert igfast.baselines.random_inputs(x, x).device.type == "cpu"


@pytest.mark.parametrize("inputs", [np.ones((2, 3)), torch.arange(3)])
def test_bounds_of_other_types(inputs):
    with pytest.raises(igfast.InputTypeError, match="inputs must be a floating tensor"):
        igfast.baselines.uniform(inputs)

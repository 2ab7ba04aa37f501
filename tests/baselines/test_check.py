"""What `check_baseline` says about outputs that are known."""

import math

import pytest
import torch

import igfast
from igfast.baselines import check_baseline

X = torch.zeros(1, 2)


def gives(*rows):
    return lambda x, *others: torch.tensor(rows)


def test_entropy_of_logits_and_of_probabilities():
    p = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    expected = float(-(p * p.log()).sum())
    for output in (p.unsqueeze(0), p.log().unsqueeze(0) + 3):
        check = check_baseline(lambda x, output=output: output, X)
        assert check.entropy == pytest.approx(expected, rel=1e-12)
        assert check.highest_entropy == pytest.approx(math.log(3))
        assert check.leans_to == 2
        torch.testing.assert_close(check.probabilities, p)


@pytest.mark.parametrize(
    ("rows", "options", "verdict", "says"),
    [
        ([[0.25, 0.25, 0.3, 0.2]], {}, "good", "undecided"),
        ([[0.6, 0.2, 0.1, 0.1]], {}, "leaning", "The model sees class 0"),
        ([[0.97, 0.01, 0.01, 0.01]], {}, "decided", "pass default_class=0"),
        ([[0.97, 0.01, 0.01, 0.01]], {"default_class": 0}, "good", "That is the default class"),
        ([[0.97, 0.01, 0.01, 0.01]], {"default_class": 2}, "decided", "The default class 2 has 1.0%"),
        ([[0.55, 0.45]], {}, "good", "Both classes need evidence"),
        ([[0.2, 0.8]], {}, "leaning", "each should have about one half"),
        ([[0.02, 0.98]], {}, "decided", "what speaks for class 1 is in the baseline already"),
        ([[0.98]], {}, "decided", "class 1"),
        ([0.5], {}, "good", "Both classes"),
        ([[-4.0]], {}, "decided", "class 0"),
        ([[5.0, 0.0, 0.0], [0.0, 5.0, 0.0], [0.0, 0.0, 5.0]], {}, "decided", "The model sees class"),
    ],
)
def test_verdicts(rows, options, verdict, says):
    check = check_baseline(gives(*rows), X, **options)
    assert check.verdict == verdict
    assert says in str(check)
    assert f"({check.entropy / check.highest_entropy:.0%})" in str(check)


def test_what_one_number_means_can_be_said():
    assert check_baseline(gives([0.02]), X).verdict == "decided"
    assert check_baseline(gives([0.02]), X, output="logits").verdict == "good"
    assert check_baseline(gives([0.7, 0.3]), X, output="logits").probabilities[0] == pytest.approx(0.5987, abs=1e-4)
    with pytest.raises(igfast.ArgumentError, match='output must be "auto", "probabilities" or "logits"'):
        check_baseline(gives([0.5]), X, output="x")


def test_the_model_and_the_baseline_stay_as_they_are():
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.ReLU(inplace=True)).train()
    mean, baseline = model[0].running_mean.clone(), torch.tensor([[1.0, -1.0], [0.0, 2.0]])
    before = baseline.clone()
    check_baseline(model, baseline)
    check_baseline(lambda x: x.sub_(1), baseline)
    assert torch.equal(model[0].running_mean, mean)
    assert torch.equal(baseline, before)


def test_arguments_reach_the_model():
    check = check_baseline(lambda x, a, b: x + a * b, X, additional_forward_args=(torch.tensor(2.0), 3))
    assert check.verdict == "good"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: check_baseline(3, X), igfast.ArgumentTypeError, "model must be callable"),
        (lambda: check_baseline(gives([1.0]), 3), igfast.ArgumentTypeError, "baseline must be a tensor or a tuple"),
        (lambda: check_baseline(gives([0.5, 0.5]), X, default_class=2), igfast.ArgumentError, "one of the 2 classes"),
        (lambda: check_baseline(lambda x: (x,), X), igfast.OutputTypeError, "must return a tensor; got a tuple"),
        (lambda: check_baseline(lambda x: x[None], X), igfast.OutputError, r"\(batch, classes\)"),
        (lambda: check_baseline(lambda x: x / 0, X), igfast.OutputError, "NaN or infinite"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_several_inputs():
    check = check_baseline(lambda a, b: a + b, (torch.zeros(1, 2), torch.tensor([[4.0, 0.0]])))
    assert check.leans_to == 0
    with pytest.raises(igfast.ArgumentTypeError, match="got 3"):
        check_baseline(lambda a, b: a, (torch.zeros(1, 2), 3))

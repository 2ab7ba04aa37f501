"""What a diagnosis says is true of models at the edges: saturated, half precision, infinite, squeezed or not copied."""

import threading

import pytest
import torch
from torch import nn

import igfast


def test_a_gradient_that_vanishes_at_both_usual_places_is_no_dead_input():
    # The example of section 2.1 of the paper: the gradient is zero from 1 on, and the attribution is 1.
    found = igfast.diagnose(lambda x: 1 - (1 - x).relu(), torch.full((1, 1), 2.0))
    assert found["gradient"].verdict == "look"
    assert "not all along the path" in found["gradient"].text
    assert found["completeness"].verdict == "good"
    dead = igfast.diagnose(lambda x: (x * 0).sum(1), torch.ones(1, 2))
    assert dead["gradient"].verdict == "bad"


def test_half_precision_does_not_hide_a_delta():
    for dtype in (torch.float32, torch.bfloat16):
        found = igfast.diagnose(lambda x: x.pow(8).sum(1), torch.ones(2, 1, dtype=dtype), n_steps=2, max_steps=2)
        assert found["completeness"].verdict == "bad", dtype
        assert found["completeness"].figures["share"] == pytest.approx(0.24, abs=0.02)


def test_a_change_that_is_rounding_is_none():
    found = igfast.diagnose(lambda x: (torch.pi * x).sin().sum(1), torch.ones(1, 2))
    assert "is the same for input and baseline" in found["saturation"].text
    assert found["completeness"].verdict == "good"


def test_an_infinite_end_is_said():
    found = igfast.diagnose(lambda x: x.log().sum(1), torch.full((1, 2), 2.0))
    assert found["saturation"].verdict == "look"
    assert "infinite" in found["saturation"].text


class Places(nn.Module):
    """Embeds places before words, as some models register them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.places, self.words, self.head = nn.Embedding(3, 4), nn.Embedding(9, 4), nn.Linear(12, 2)

    def forward(self, ids):
        return self.head((self.words(ids) + self.places(torch.arange(3))).flatten(1))


def test_the_embedding_that_the_inputs_reach_is_named():
    found = igfast.diagnose(Places().eval(), torch.tensor([[1, 2, 3], [4, 5, 6]]), target=1)
    assert "model.words)" in found["integers"].text


def test_dropout_that_drops_nothing_is_no_reason():
    found = igfast.diagnose(nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.0)).train(), torch.ones(2, 3), target=0)
    assert found["mode"].verdict == "good"
    found = igfast.diagnose(nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)).train(), torch.ones(2, 3), target=0)
    assert found["mode"].verdict == "bad"


def test_features_that_change_nothing_are_not_counted():
    found = igfast.diagnose(lambda x: x[:, 0].tanh(), torch.ones(1, 8))
    assert found["sensitivity"].text.startswith("1 features")
    assert found["sensitivity"].figures["features"] == 1


def test_a_model_that_cannot_be_copied_is_said_to_be_one():
    class Locked(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.lock = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)), threading.Lock()

        def forward(self, x):
            return self.layers(x)

    found = igfast.diagnose(Locked().eval(), torch.ones(2, 3), target=0)
    assert found["invariance"].verdict == "skipped"
    assert "cannot be copied" in found["invariance"].text


def test_scores_that_are_no_logits_are_not_called_logits():
    found = igfast.diagnose(nn.Linear(3, 2).eval(), torch.ones(2, 3), target=0)
    assert found["scale"].text.startswith("No probabilities")


def test_a_baseline_whose_output_lacks_the_dimension_of_examples():
    classes = torch.tensor([[0.9, 0.06, 0.04]])
    check = igfast.baselines.check_baseline(lambda x: classes.expand(len(x), 3).squeeze(), torch.zeros(1, 4))
    assert len(check.probabilities) == 3
    assert float(check.probabilities[0]) == pytest.approx(0.9)
    with pytest.raises(igfast.OutputError, match="each of the 2 examples"):
        igfast.baselines.check_baseline(lambda x: torch.ones(3), torch.zeros(2, 4))

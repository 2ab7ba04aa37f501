"""Explanations whose attributions do not sum to the change of the output say so, and name the model."""

import warnings

import pytest
import torch
from torch import nn

import igfast


class Positions(nn.Module):
    """Padding moves what passes beside the words' embedding: positions, as in RoBERTa."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.places, self.head = nn.Embedding(10, 6), nn.Embedding(10, 6), nn.Linear(6, 2)

    def forward(self, ids):
        places = (ids != 1).cumsum(1) * (ids != 1)
        return self.head((self.words(ids) + 3 * self.places(places)).tanh().mean(1))


IDS = torch.tensor([[4, 5, 6, 7]])


def test_padding_that_moves_positions():
    model = Positions().double()
    explainer = igfast.LayerIntegratedGradients(model, model.words)
    with pytest.warns(igfast.ConvergenceWarning, match="do not sum to the change .* mask token"):
        explainer.explain(IDS, 1, target=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explainer.explain(IDS, 2, target=1)  # another token leaves positions where they are


def test_a_diagnosis_names_all_embeddings_that_the_baseline_moves():
    text = igfast.diagnose(Positions().double(), IDS, baselines=1, target=1)["integers"].text
    assert "LayerIntegratedGradients(model, [model.words, model.places])" in text


def test_a_model_behind_an_output_is_named():
    class Pair(Positions):
        def forward(self, ids):
            return super().forward(ids), ids

    model = igfast.select_output(Pair().double(), 0)
    meta = igfast.LayerIntegratedGradients(model, model.model.words).explain(IDS[:, :1], 2, target=1).meta
    assert meta["model"] == "Pair"
    assert meta["layer"] == "words (Embedding)"

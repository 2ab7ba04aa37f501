"""A picture of an answer's tokens by those of its prompt."""

import pytest
import torch

import igfast
from tests.llm.language import ANSWER, model, ours, prompt

pytestmark = pytest.mark.filterwarnings("ignore::igfast.ConvergenceWarning")  # of 8 steps


def test_has_rows_for_the_answer_and_columns_for_the_prompt(tmp_path):
    network, layer = model("gpt2")
    result = ours(network, layer, prompt())
    figure = igfast.viz.token_matrix(result, title="$100 and _")
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ANSWER.split()
    assert [label.get_text() for label in axes.get_xticklabels()] == result.input_tokens
    drawn = torch.tensor(axes.images[0].get_array().tolist())
    torch.testing.assert_close(drawn.double(), result.token_attr, rtol=1e-6, atol=1e-9)
    most = float(drawn.abs().max())
    assert axes.images[0].get_clim() == pytest.approx((-most, most))
    assert len(axes.texts) == result.token_attr.numel()
    igfast.viz.save(figure, tmp_path / "matrix.png")
    assert not igfast.viz.token_matrix(torch.rand(30, 20), ["$"] * 20, ["a"] * 30).axes[0].texts


def test_bad_input():
    network, layer = model("gpt2")
    with pytest.raises(igfast.ArgumentError, match="no token_attr: call attribute with per_token=True"):
        igfast.viz.token_matrix(ours(network, layer, prompt(), per_token=False))
    with pytest.raises(igfast.ArgumentError, match="need input_tokens and output_tokens"):
        igfast.viz.token_matrix([[1.0]])
    with pytest.raises(igfast.ArgumentError, match=r"are \(1, 2\), for 1 output and 1 input tokens"):
        igfast.viz.token_matrix([[1.0, 2.0]], ["a"], ["b"])
    with pytest.raises(igfast.InputError, match=r"must be \(outputs, inputs\); got shape \(1,\)"):
        igfast.viz.token_matrix([1.0], ["a"], ["b"])


def test_a_results_own_tokens_are_decoded_already():
    network, layer = model("gpt2")
    result = ours(network, layer, prompt())
    result.output_tokens = ["są", "###", *result.output_tokens[2:]]
    axes = igfast.viz.token_matrix(result).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == result.output_tokens


@pytest.mark.parametrize(
    ("largest", "shown"),
    [(12.0, ["12.0", "0.0"]), (0.054, ["0.054", "0.000"]), (1e-6, ["0.0000"] * 2), (0.0, ["0.0"] * 2)],
)
def test_numbers_have_the_digits_of_the_largest(largest, shown):
    figure = igfast.viz.token_matrix([[largest, -largest / 1e5]], ["a", "b"], ["c"])
    assert [text.get_text() for text in figure.axes[0].texts] == shown

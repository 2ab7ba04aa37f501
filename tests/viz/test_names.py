"""What pictures and pages write: tokens, names, values, captions, and nothing that is cut off."""

import numpy as np
import pandas
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

import igfast
from igfast import viz


def outside(figure):
    """The texts of a figure that are not wholly inside of it."""
    FigureCanvasAgg(figure).draw()
    width, height = figure.get_size_inches() * figure.dpi
    texts = [figure._suptitle, figure._supxlabel, *figure.texts]
    for axes in (axes for axes in figure.axes if axes.axison):
        texts += [*axes.get_yticklabels(), axes.xaxis.label, axes.yaxis.label]
    boxes = {text.get_text(): text.get_window_extent() for text in texts if text is not None and text.get_text()}
    return [
        text for text, box in boxes.items() if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1
    ]


@pytest.mark.parametrize("size", [(32, 32), (64, 20), (20, 64)])
@pytest.mark.parametrize("panels", [["overlay"], ["input", "overlay"], ["heat_map"]])
def test_captions_of_images_fit(size, panels):
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * size[0] * size[1], 2))
    explanation = igfast.IntegratedGradients(net).explain(torch.rand(1, 3, *size), target=1, n_steps=3)
    figure = explanation.plot(panels=panels)
    assert not outside(figure)
    assert ("green for" in figure.get_supxlabel().replace("\n", " ")) == ("overlay" in panels)


def test_long_names_and_texts_fit():
    names = ["a_very_long_name_of_a_column_" * 4, "x"]
    figure = viz.bars([0.1, -0.2], names, ["Rome", 3], title="a long title " * 12)
    assert not outside(figure)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels[0] == "x = 3"
    assert labels[1].endswith("= Rome")
    assert "…" in labels[1]


def test_values_of_a_row_of_a_data_frame():
    frame = pandas.DataFrame({"city": ["Rome"], "rooms": [6]})
    figure = viz.bars([0.5, 0.1], list(frame.columns), frame.iloc[0])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["city = Rome", "rooms = 6"]


@pytest.mark.parametrize(
    "token",
    [
        *("[CLS]", "<s>", "<|eot_id|>", "<|reserved_special_token_0|>", "<|END_OF_TURN_TOKEN|>", "<end_of_turn>"),
        *("<start_of_turn>", "<\uff5cUser\uff5c>", "<extra_id_0>", "<0x0A>", "<<SYS>>", "[/INST]"),
    ],
)
def test_special_tokens_are_not_joined(token):
    tokens = viz.tokens_of([1.0, 2.0, 3.0], ["▁now", token, "What"])
    assert tokens.words[:2] == ("now", token)
    assert tokens.special[1]


@pytest.mark.parametrize("token", ["<script>", "[link]", "<div>", "|x|", "<a|b>"])
def test_ordinary_tokens_are_not_special(token):
    assert not any(viz.tokens_of([1.0], [token]).special)


class TestSignals:
    """Batch-first sequences, (batch, time, channels), as recurrent networks take them."""

    @staticmethod
    def explanation(names, n_times=12):
        torch.manual_seed(0)
        gru, head = torch.nn.GRU(3, 4, batch_first=True), torch.nn.Linear(4, 2)
        explainer = igfast.IntegratedGradients(lambda x: head(gru(x)[0][:, -1]))
        return explainer.explain(torch.rand(2, n_times, 3), target=1, n_steps=3, feature_names=names)

    def test_names_of_channels_turn_them(self):
        figure = self.explanation(["pulse", "pressure", "oxygen"]).plot()
        assert [axes.get_ylabel() for axes in figure.axes] == ["pulse", "pressure", "oxygen"]
        assert len(figure.axes[0].collections[0].get_segments()) == 11

    def test_without_names_the_last_dimension_is_the_time(self):
        assert len(self.explanation(None).plot().axes) == 12


class TestClasses:
    @staticmethod
    def explanation(**options):
        torch.manual_seed(0)
        return igfast.IntegratedGradients(torch.nn.Linear(3, 4)).explain(torch.ones(2, 3), **options)

    @pytest.mark.parametrize("names", [["cat", "dog", "fox", "owl"], {0: "cat", 3: "owl"}])
    def test_are_named(self, names):
        explanation = self.explanation(target=[3, 0], target_names=names)
        assert explanation.target_names == {0: "cat", 3: "owl"}
        assert "target [3, 0] (owl, cat)" in explanation.summary()
        assert explanation.plot(row=1).get_suptitle().startswith("target 0 (cat): ")
        assert "target 3 (owl): " in viz.report(explanation)
        again = igfast.Explanation.from_json(explanation.to_json())
        assert again.summary() == explanation.summary()

    def test_of_one_target(self):
        assert self.explanation(target=1, target_names="abcd".replace("", " ").split()).target_names == {1: "b"}
        assert self.explanation(target=torch.tensor([1, 2]), target_names={5: "x"}).target_names is None

    @pytest.mark.parametrize("names", ["cat", [1, 2], {"0": "cat"}, 3])
    def test_that_are_no_texts(self, names):
        with pytest.raises(igfast.ArgumentError, match="target_names must be a list of texts, or a dict"):
            self.explanation(target=1, target_names=names)


class TestGallery:
    @staticmethod
    def images(n):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 2))
        return igfast.IntegratedGradients(net).explain(torch.rand(n, 3, 8, 8), target=1, n_steps=3)

    def test_has_a_picture_for_each_example_of_all(self):
        page = viz.gallery(iter([self.images(2), self.images(1)]), titles=["a", "<b>", "c"], links=["", "x.html", ""])
        assert page.count("<img") == 3
        assert "&lt;b&gt;" in page
        assert page.count("<a href") == 1

    def test_has_texts_and_says_what_has_no_picture(self):
        net = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Flatten(), torch.nn.Linear(12, 2))
        explainer = igfast.LayerIntegratedGradients(net, net[0])
        text = explainer.explain(torch.tensor([[1, 2, 3]]), target=0, feature_names=[["one", "two", "three"]])
        odd = igfast.IntegratedGradients(lambda x: x).explain(torch.ones(2))
        page = viz.gallery([text, odd])
        assert ">two</span>" in page
        assert page.count("No picture: there is no picture for inputs of shape (2,)") == 2

    def test_bad_arguments(self):
        with pytest.raises(igfast.ArgumentError, match="titles must have one entry for each of the 2 examples; got 1"):
            viz.gallery(self.images(2), titles=["a"])
        with pytest.raises(igfast.ArgumentTypeError, match=r"explanation must be an igfast\.Explanation"):
            viz.gallery([torch.ones(2)])

    def test_pixels_of_the_page(self):
        seen = []
        viz.report(self.images(1), picture=lambda x: seen.append(x.shape) or np.zeros((8, 8, 3)))
        assert seen == [(3, 8, 8)]


@pytest.mark.parametrize("draw", [viz.plot, viz.report])
def test_what_is_no_explanation(draw):
    with pytest.raises(igfast.ArgumentTypeError, match=r"explanation must be an igfast\.Explanation"):
        draw(torch.ones(3))

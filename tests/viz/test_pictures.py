"""Pictures show the sign and the place of attributions, take what users have, and refuse what has no picture."""

import io
import time
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

import igfast
from igfast import viz

RED, GREEN = (0.86, 0.10, 0.13), (0.0, 0.62, 0.25)


def pixels_of(figure, axes=0):
    return np.asarray(figure.axes[axes].images[0].get_array())


def image_explanation(n=2, size=16):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * size * size, 4))
    return igfast.IntegratedGradients(net).explain(torch.rand(n, 3, size, size), target=[0, 3][:n], n_steps=5), net


def corners():
    """Attributions that are positive in the upper left and negative in the lower right."""
    attributions = np.zeros((32, 32))
    attributions[:8, :8], attributions[-8:, -8:] = 1, -1
    return attributions


def test_overlay_is_green_for_and_red_against():
    pixels = pixels_of(viz.image(corners(), np.full((32, 32), 0.5), panels=["overlay"], smoothing=0, clip=(0, 100)))
    upper, lower, middle = pixels[3, 3], pixels[-4, -4], pixels[16, 16]
    assert upper[1] > upper[0] + 0.3
    assert lower[0] > lower[1] + 0.3
    assert np.ptp(middle) < 1e-9


@pytest.mark.parametrize("strength", [1e-4, 1e4])
def test_a_few_pixels_among_zeros_have_full_colours(strength):
    attributions = np.zeros((100, 100))
    attributions[50, 50], attributions[20, 20] = strength, -strength / 2
    figure = viz.image(attributions, np.zeros((100, 100)), panels=["heat_map"], smoothing=0, title="$x_1$")
    pixels = pixels_of(figure)
    assert pixels[50, 50].sum() > pixels[20, 20].sum() > 0.2
    assert pixels[0, 0].sum() < 0.1
    assert "colours from zero to the largest" in figure.get_supxlabel()
    assert not figure._suptitle.get_parse_math()


def test_signs():
    shown = {
        sign: pixels_of(
            viz.image(corners(), np.zeros((32, 32)), panels=["heat_map"], smoothing=0, clip=(0, 100), sign=sign)
        )
        for sign in ("both", "positive", "negative")
    }
    bright = {sign: (pixels[3, 3].sum() > 1, pixels[-4, -4].sum() > 1) for sign, pixels in shown.items()}
    assert bright == {"both": (True, True), "positive": (True, False), "negative": (False, True)}


def test_reveal_shows_the_image_where_attributions_are_strong():
    picture = np.random.default_rng(0).random((32, 32, 3))
    pixels = pixels_of(viz.image(corners(), picture, panels=["reveal"], smoothing=0, clip=(0, 100)))
    np.testing.assert_allclose(pixels[3, 3], picture[3, 3])
    assert not pixels[16, 16].any()


def test_outlines_go_around_regions_and_leave_out_specks():
    attributions = corners()
    attributions[16, 16] = 1
    pixels = pixels_of(viz.image(attributions, np.zeros((32, 32)), panels=["outlines"], smoothing=0, clip=(0, 100)))
    green = np.all(np.isclose(pixels, GREEN), axis=2)
    assert green[:9, :9].sum() >= 20
    assert not green[3:6, 3:6].any()
    assert not green[12:20, 12:20].any()
    assert np.all(np.isclose(pixels, RED), axis=2)[-9:, -9:].sum() >= 20


def test_percentiles_clip_both_ends():
    attributions = np.linspace(0, 1, 101)[None, :].repeat(4, axis=0)
    pixels = pixels_of(viz.image(attributions, np.zeros((4, 101)), panels=["reveal"], smoothing=0, clip=(50, 90)))
    strengths = pixels_of(viz.image(attributions, np.ones((4, 101)), panels=["reveal"], smoothing=0, clip=(50, 90)))[
        0, :, 0
    ]
    assert not pixels.any()
    assert not strengths[:50].any()
    assert strengths[91] == strengths[100] == 1
    assert 0 < strengths[70] < 1


def test_smoothing_is_said_in_the_picture():
    figure = viz.image(corners(), np.zeros((32, 32)), smoothing=0.125)
    assert "sigma 4.0 px" in figure.get_supxlabel()
    assert "not smoothed" in viz.image(corners(), np.zeros((32, 32)), smoothing=0).get_supxlabel()


@pytest.mark.parametrize(
    "picture",
    [
        torch.rand(3, 32, 32), np.random.default_rng(0).random((32, 32, 3)), np.zeros((32, 32), np.uint8),
        np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8), torch.randn(1, 32, 32),
        torch.randn(4, 32, 32),
    ],
)  # fmt: skip
def test_pictures_that_users_have(picture):
    pixels = pixels_of(viz.image(torch.randn(3, 32, 32), picture))
    assert pixels.shape == (32, 32, 3)
    assert pixels.min() >= 0
    assert pixels.max() <= 1


def test_explanations_draw_themselves(tmp_path):
    explanation, _ = image_explanation()
    for row in (0, 1):
        figure = explanation.plot(row=row, panels=viz.PANELS)
        assert len(figure.axes) == len(viz.PANELS)
        assert f"target {[0, 3][row]}" in figure.get_suptitle()
    for ending in ("png", "svg"):
        viz.save(figure, tmp_path / f"picture.{ending}")
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.width > 500
    assert "<svg" in (tmp_path / "picture.svg").read_text()
    with pytest.raises(igfast.ArgumentError, match=r"path must end in one of .*'png'.*got .*picture\.docx"):
        viz.save(figure, tmp_path / "picture.docx")


def test_no_window_and_no_global_state():
    import matplotlib
    from matplotlib import pyplot

    before, backend = pyplot.get_fignums(), matplotlib.get_backend()
    image_explanation()[0].plot()
    assert pyplot.get_fignums() == before
    assert matplotlib.get_backend() == backend


def test_large_images_are_drawn_from_averages():
    attributions = np.random.default_rng(0).standard_normal((4096, 4096))
    began = time.perf_counter()
    figure = viz.image(attributions, np.zeros((4096, 4096), np.uint8))
    assert pixels_of(figure).shape == (1024, 1024, 3)
    assert "sigma 122.9 px" in figure.get_supxlabel()
    assert time.perf_counter() - began < 60  # far above; an unaveraged picture takes minutes


def test_path_strip_shows_f_along_the_path():
    explanation, net = image_explanation()
    figure = viz.path_strip(explanation, net, row=1, n_images=3)
    titles = [axes.get_title() for axes in figure.axes]
    ends = float(explanation.baseline_predictions[1]), float(explanation.predictions[1])
    assert titles[0] == f"alpha 0\nF {ends[0]:.3g}"
    assert titles[2] == f"alpha 1\nF {ends[1]:.3g}"


def test_path_strip_needs_one_baseline_of_the_inputs():
    _, net = image_explanation()
    several = igfast.Baselines(torch.rand(3, 3, 16, 16))
    explanation = igfast.IntegratedGradients(net).explain(torch.rand(2, 3, 16, 16), several, 1, n_steps=5)
    with pytest.raises(igfast.ArgumentError, match="path of inputs from one baseline"):
        viz.path_strip(explanation, net)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: viz.image(corners()), igfast.ArgumentError, "picture is needed"),
        (lambda: viz.image(corners(), np.zeros((8, 8))), igfast.InputError, r"picture is \(8, 8\) pixels, and the"),
        (lambda: viz.image(corners(), np.zeros((32, 32)), panels="overlay"), igfast.ArgumentError, "panels must be a"),
        (lambda: viz.image(corners(), np.zeros((32, 32)), panels=["x"]), igfast.ArgumentError, "panels must be a list"),
        (lambda: viz.image(corners(), np.zeros((32, 32)), sign="x"), igfast.ArgumentError, "sign must be one of"),
        (lambda: viz.image(corners(), np.zeros((32, 32)), clip=(9, 3)), igfast.ArgumentError, "clip must be two perc"),
        (lambda: viz.image(corners(), np.zeros((32, 32)), smoothing=2), igfast.ArgumentError, "smoothing must be a"),
        (lambda: viz.image(corners() * np.nan, np.zeros((32, 32))), igfast.InputError, "attributions holds NaN"),
        (lambda: viz.image("x", np.zeros((32, 32))), igfast.ArgumentTypeError, "attributions must be a tensor"),
        (lambda: viz.image(np.zeros(3), np.zeros((32, 32))), igfast.InputError, r"got shape \(3,\)"),
        (lambda: viz.image(image_explanation()[0], row=2), igfast.ArgumentError, "one of the 2 examples; got 2"),
        (lambda: viz.path_strip(*image_explanation(), n_images=1), igfast.ArgumentError, "n_images must be at least 2"),
        (lambda: viz.bars([1.0], ["a", "b"]), igfast.ArgumentError, "there are 2 names for 1 attributions"),
        (lambda: viz.bars([1.0], ["a"], [1, 2]), igfast.ArgumentError, r"values must have shape \(1,\)"),
        (lambda: viz.bars([[1.0]]), igfast.InputError, "a row of a table"),
        (lambda: viz.bars([1.0], most=0), igfast.ArgumentError, "most must be at least 1"),
        (lambda: viz.series(np.ones(3)), igfast.ArgumentError, "signal is needed"),
        (lambda: viz.series(np.ones(3), np.ones(4)), igfast.InputError, r"signal must be \(channels, time\)"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_bars_are_sorted_and_the_rest_is_summed():
    figure = viz.bars([0.1, -3.0, 2.0, 0.2], list("abcd"), [1, 2, 3, 4], most=2)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["b = 2", "c = 3", "2 others"]
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    np.testing.assert_allclose(widths, [-3.0, 2.0, 0.3])
    assert figure.axes[0].patches[0].get_facecolor()[:3] == RED
    assert figure.axes[0].patches[1].get_facecolor()[:3] == GREEN


def test_series_has_a_line_for_each_channel():
    explanation = igfast.IntegratedGradients(lambda x: x.mean(dim=(1, 2))).explain(torch.rand(1, 2, 30), n_steps=5)
    figure = explanation.plot()
    assert len(figure.axes) == 2


def test_words_are_joined_from_pieces():
    def joined(tokens):
        return viz.tokens_of(np.arange(1.0, len(tokens) + 1), tokens)

    assert joined(["[CLS]", "play", "##ing", "!", "[SEP]"]).words == ("[CLS]", "playing", "!", "[SEP]")
    assert joined(["[CLS]", "play", "##ing", "!", "[SEP]"]).scores == (1.0, 5.0, 4.0, 5.0)
    assert joined(["Ġthe", "Ġcat", "s", "Ċ", "Ġsit"]).words == ("the", "cats", "⏎", "sit")
    assert joined(["c", "af", "Ã", "©", "ĠðŁĺ", "Ģ", "Ġ("]).words == ("café", "😀", "(")
    assert joined(["é", "##t", "##é", "猫", "Ã"]).words == ("été", "猫", "Ã")
    assert joined(["<s>", "▁Hel", "lo", "</s>"]).words == ("<s>", "Hello", "</s>")
    assert joined(["a", "b"]).words == ("a", "b")
    assert joined(["[CLS]", "<script>", "[PAD]"]).special == (True, False, True)
    assert viz.tokens_of([1.0, 2.0], ["a", "##b"], join_pieces=False).words == ("a", "##b")


def test_padding_is_left_out_and_dimensions_are_summed():
    tokens = viz.tokens_of(torch.tensor([1.0, 1, 0, 0, 0])[:, None].expand(5, 3), ["a", "b"])
    assert tokens.scores == (3.0, 3.0)
    with pytest.raises(igfast.ArgumentError, match="those beyond the last token are not zero"):
        viz.tokens_of([0.0, 0.0, 1.0, 2.0], ["a", "b"])  # padding on the left
    with pytest.raises(igfast.ArgumentError, match="3 tokens for 2 attributions"):
        viz.tokens_of([1.0, 2.0], ["a", "b", "c"])
    with pytest.raises(igfast.ArgumentError, match="tokens are needed"):
        viz.tokens_of([1.0])
    with pytest.raises(igfast.InputError, match="a text has attributions"):
        viz.tokens_of(np.ones((1, 2, 3)), ["a"])


class Collected(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)


def test_html_escapes_tokens_and_colours_by_sign():
    tokens = viz.tokens_of([1.0, -1.0, 0.0], ["<script>alert(1)</script>", '"x"', "&amp;"], title="<b>")
    html = Collected(viz.text_html([tokens, tokens]))
    assert {tag for tag, _ in html.tags} <= {"div", "p", "span"}
    assert html.texts.count("<script>alert(1)</script>") == 2
    assert "&amp;" in html.texts
    first, second, third = [attrs["style"].split("background:#")[1][:6] for tag, attrs in html.tags if tag == "span"][
        :3
    ]
    assert int(first[2:4], 16) > int(first[:2], 16)
    assert int(second[:2], 16) > int(second[2:4], 16)
    assert len({third[:2], third[2:4], third[4:]}) == 1


def test_terminal_shows_colours():
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, force_terminal=True, color_system="truecolor").print(
        viz.text_terminal(viz.tokens_of([1.0, -1.0], ["good", "bad"], title="sentiment"))
    )
    assert "sentiment" in out.getvalue()
    assert out.getvalue().count("48;2;") == 2


def test_text_figures_wrap_within_their_width():
    tokens = viz.tokens_of(np.ones(60), [f"word{i}" for i in range(60)], title="many $words_")
    figure = viz.text_figure(tokens, width=5)
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.texts]
    assert max(box.x1 for box in boxes) <= 5 * figure.dpi
    assert min(box.y0 for box in boxes) >= 0
    assert len({round(box.y1) for box in boxes}) > 5


@pytest.mark.parametrize(
    ("explanation", "message"),
    [
        (lambda: igfast.IntegratedGradients(lambda a, b: (a + b).sum(1)).explain((torch.ones(1, 2),) * 2), "several"),
        (lambda: layer_explanation(), "needs feature_names"),
        (lambda: igfast.IntegratedGradients(lambda x: x).explain(torch.ones(3)), "no picture for inputs of shape"),
    ],
)
def test_what_has_no_picture(explanation, message):
    with pytest.raises(igfast.ArgumentError, match=message):
        explanation().plot()


def layer_explanation(names=None):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Flatten(), torch.nn.Linear(12, 2))
    explainer = igfast.LayerIntegratedGradients(net, net[0])
    return explainer.explain(torch.tensor([[1, 2, 3]]), target=0, feature_names=names)


def test_a_text_draws_itself():
    figure = layer_explanation([["a", "##b", "<c>"]]).plot()
    assert [text.get_text() for text in figure.texts[1:]] == ["ab", "<c>"]


def test_notebooks_show_a_fragment():
    html = image_explanation()[0]._repr_html_()
    assert "<html" not in html
    assert html.count("data:image/png;base64,") == 3
    assert "Examples not shown: 1." in html


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (["są", "noć", "dağ"], ("są", "noć", "dağ")),
        (["▁něco", "▁ĉu"], ("něco", "ĉu")),
        (["###", "play", "##ing"], ("###", "playing")),
        (["Ġozo", "##x"], ("Ġozox",)),
        (["▁今天", "天气", "很", "好"], ("今天", "天气", "很", "好")),
        (["▁hel", "lo", "▁w"], ("hello", "w")),
        (["ä½łå", "¥½", "å¥½", "Ġcaf", "Ã©", "Ċ"], ("你好", "好", "café", "⏎")),
    ],
)
def test_words_of_other_scripts_and_tokenizers(tokens, words):
    assert viz.tokens_of([1.0] * len(tokens), tokens).words == words


def test_a_strip_of_pixels_and_of_models_that_drop_a_dimension():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(48), torch.nn.Linear(48, 1)).train()
    pixels, start = torch.full((1, 3, 4, 4), 10, dtype=torch.uint8), torch.full((1, 3, 4, 4), 255, dtype=torch.uint8)
    net.eval()

    def forward(x):
        return net(x).squeeze()

    explanation = igfast.IntegratedGradients(forward).explain(pixels, start)
    figure = viz.path_strip(explanation, forward, n_images=3)
    shown = [float(axes.get_title().split("F ")[1]) for axes in figure.axes]
    ends = [float(net(torch.full((1, 3, 4, 4), value)).detach()) for value in (255.0, 132.5, 10.0)]
    assert shown == pytest.approx(ends, rel=1e-2)
    assert pixels_of(figure, 2).max() <= pixels_of(figure, 0).min()


def test_a_strip_is_of_the_models_output():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), torch.nn.Flatten(), torch.nn.Linear(48, 4))
    x = torch.rand(1, 3, 4, 4)
    neuron = igfast.NeuronIntegratedGradients(net, net[2]).explain(x, 1)
    layer = igfast.LayerIntegratedGradients(net, net[0]).explain(x, target=1)
    for explanation in (neuron, layer):
        with pytest.raises(igfast.ArgumentError, match="or is of a layer or neuron"):
            viz.path_strip(explanation, net)


@pytest.mark.filterwarnings("ignore:the output of forward_func for one example depends")
def test_a_strip_leaves_running_statistics():
    net = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.Flatten(), torch.nn.Linear(48, 2)).train()
    explanation = igfast.IntegratedGradients(net).explain(torch.rand(1, 3, 4, 4), target=1, n_steps=4)
    before = net[0].running_mean.clone()
    viz.path_strip(explanation, net, n_images=2)
    assert torch.equal(before, net[0].running_mean)


def test_the_colours_of_a_signal_say_for_and_against():
    figure = viz.series(np.array([1.0, 1.0, -1.0, -1.0]), np.arange(4.0))
    colours = figure.axes[0].collections[0].get_colors()[:, :3]
    assert tuple(colours[0]) == pytest.approx(GREEN)
    assert tuple(colours[-1]) == pytest.approx(RED)


def test_the_channels_with_most_attribution_are_shown():
    scores = np.zeros((40, 5))
    scores[[2, 7]] = 1.0
    figure = viz.series(scores, np.zeros((40, 5)), names=[f"c{i}" for i in range(40)])
    shown = {axes.get_ylabel() for axes in figure.axes}
    assert {"c2", "c7"} <= shown
    assert len(shown) < 40

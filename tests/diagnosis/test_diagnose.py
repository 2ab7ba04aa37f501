"""Each check of `diagnose` finds what it is for, and leaves the model as it was."""

import copy

import pytest
import torch
from torch import nn

import igfast


def mlp(*layers):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), *layers, nn.Linear(16, 3)).double().eval()


X = torch.rand(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_a_good_model():
    diagnosis = igfast.diagnose(mlp(), X, target=1)
    assert {finding.check: finding.verdict for finding in diagnosis.findings} == {
        **dict.fromkeys(("output", "mode", "integers", "scale", "rows", "gradient", "completeness"), "good"),
        **dict.fromkeys(("saturation", "sensitivity", "linearity", "symmetry"), "good"),
        **dict.fromkeys(("dummy", "invariance"), "skipped"),
    }
    assert diagnosis.good
    assert diagnosis["sensitivity"].figures["error"] < 1e-8
    assert diagnosis["linearity"].figures["error"] < 1e-8
    assert str(diagnosis).count("\n") == 12


def test_features_that_the_output_ignores():
    model = mlp()
    with torch.no_grad():
        model[0].weight[:, [1, 4]] = 0
    finding = igfast.diagnose(model, X, target=1)["dummy"]
    assert finding.verdict == "good"
    assert finding.figures == {"features": 2, "largest": 0}


class LeaksGradient(torch.autograd.Function):
    """Ignores its second argument, and says in the backward pass that it does not."""

    @staticmethod
    def forward(ctx, x, ignored):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient, gradient


def test_a_wrong_gradient_is_seen():
    finding = igfast.diagnose(lambda x: LeaksGradient.apply(x[:, :3].tanh(), x[:, 3:]), X, target=1)["dummy"]
    assert finding.verdict == "look"
    assert "features that the output ignores get at most 0." in finding.text


def test_an_embedding_that_is_known_twice():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 2)).eval()
    embedding = model[0]
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    found = igfast.diagnose(lambda ids: model[1:](embedding(ids)), ids, target=1)
    assert found["completeness"].verdict == "good"


def test_several_embeddings_are_attributed_together():
    class Text(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.places, self.kinds = nn.Embedding(10, 4), nn.Embedding(3, 4), nn.Embedding(2, 4)
            self.head = nn.Linear(12, 2)

        def forward(self, ids, kinds):
            places = self.places(torch.arange(3))
            return self.head((self.words(ids) + self.kinds(kinds) + places).tanh().flatten(1))

    torch.manual_seed(0)
    ids, kinds = torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([[0, 1, 1], [1, 1, 0]])
    assert igfast.diagnose(Text().eval(), (ids, kinds), target=1)["completeness"].verdict == "good"


class Drops(nn.Module):
    """Dropout that no module shows."""

    def forward(self, x):
        return nn.functional.dropout(x, 0.5, self.training)


class Calls(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.ones(1).double())

    def forward(self, *inputs):
        return self.function(*inputs) * self.weight


@pytest.mark.parametrize(
    ("model", "arguments", "check", "verdict", "says"),
    [
        (mlp(), {}, "output", "bad", "target is None"),
        (lambda x: (x,), {"target": 0}, "output", "bad", "returns a tuple, not a tensor"),
        (lambda x: x.sum().reshape(1), {}, "output", "look", "1 entries for 3 examples"),
        (mlp(nn.Dropout(0.5)).train(), {"target": 0}, "mode", "bad", "Dropout in training mode: call model.eval()"),
        (mlp().train(), {"target": 0}, "mode", "good", "does not change the output here"),
        (Drops().train(), {"target": 0}, "mode", "bad", "Training mode changes the output: call model.eval()"),
        (Drops().eval(), {"target": 0}, "mode", "good", "Evaluation mode"),
        (mlp(nn.BatchNorm1d(16).double()).train(), {"target": 0}, "mode", "bad", "BatchNorm1d in training mode"),
        (nn.Sequential(mlp(), nn.Softmax(1)), {"target": 0}, "scale", "good", "Probabilities: rows sum to one"),
        (lambda x: (1e4 * x).softmax(1), {"target": 0}, "scale", "look", "saturated"),
        (mlp(), {"target": 0}, "scale", "good", "No probabilities"),
        (Calls(lambda x: x - x.mean(0)), {"target": 0}, "rows", "look", "examples depend on each other"),
        (lambda x: x.reshape(3, 6), {"target": 0}, "rows", "look", "does not take one example alone"),
        (lambda x: x / (x[1, 0] - x[:, :1]), {"target": 1}, "output", "bad", "The output of example 1 is inf"),
        (lambda x: (x - X).abs().sqrt(), {"target": 1}, "gradient", "bad", "NaN or infinite"),
        (lambda x: x.detach(), {"target": 0}, "gradient", "bad", "no graph to the inputs"),
        (lambda x: x * 0, {"target": 0}, "gradient", "bad", "No gradient reaches inputs[0]"),
        (lambda x: (50 * x).tanh(), {"target": 0}, "saturation", "look", "on the first fifth of the path"),
        (lambda x: (50 * (x - 0.3)).tanh(), {"target": 0, "n_steps": 4}, "completeness", "look", "steps do"),
        (lambda x: (60 * x - 18).tanh(), {"target": 0, "n_steps": 2, "max_steps": 5}, "completeness", "bad", "still"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:forward_func does not take other numbers")
def test_findings(model, arguments, check, verdict, says):
    finding = igfast.diagnose(model, X, **arguments)[check]
    assert finding.verdict == verdict
    assert says in finding.text


def test_integers_name_the_embedding():
    class Text(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(10, 4)
            self.head = nn.Linear(12, 2)

        def forward(self, ids):
            return self.head(self.words(ids).flatten(1))

    torch.manual_seed(0)
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    diagnosis = igfast.diagnose(Text().eval(), ids, target=1)
    assert "LayerIntegratedGradients(model, model.words)" in diagnosis["integers"].text
    assert diagnosis["completeness"].verdict == "good"
    assert diagnosis["linearity"].verdict == "skipped"
    sequential = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 2)).eval()
    assert "model.get_submodule('0')" in igfast.diagnose(sequential, ids, target=1)["integers"].text
    none = igfast.diagnose(lambda ids: ids.double(), ids, target=1)
    assert none["integers"].verdict == "look"


def trained(model):
    model.train()
    for _ in range(5):
        model(torch.rand(16, 3, 12, 12).double())
    return model.eval()


def convolutions():
    body = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten())
    return nn.Sequential(*body, nn.Linear(400, 2), nn.Linear(2, 2)).double()


@pytest.mark.parametrize(
    ("model", "x", "n"),
    [
        (lambda: trained(convolutions()), torch.rand(2, 3, 12, 12).double(), 2),
        (lambda: nn.Sequential(nn.Linear(6, 4, bias=False), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)), X, 1),
    ],
)
def test_invariance_under_an_equivalent_network(model, x, n):
    torch.manual_seed(0)
    finding = igfast.diagnose(model().double().eval(), x, target=1)["invariance"]
    assert finding.verdict == "good"
    assert finding.figures["layers"] == n
    assert finding.figures["error"] < 1e-6


def test_layers_that_do_not_follow_each_other_are_not_folded():
    class Apart(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6)
            self.norm.running_mean += 1

        def forward(self, x):
            return self.first(self.norm(x).tanh())

    torch.manual_seed(0)
    finding = igfast.diagnose(Apart().double().eval(), X, target=1)["invariance"]
    assert finding.verdict == "skipped"


def test_layers_of_other_sizes_are_not_folded():
    class Declared(nn.Module):
        def __init__(self):
            super().__init__()
            self.second, self.norm, self.first = nn.Linear(20, 3), nn.BatchNorm1d(20), nn.Linear(6, 20)

        def forward(self, x):
            return self.second(self.norm(self.first(x)))

    torch.manual_seed(0)
    assert igfast.diagnose(Declared().double().eval(), X, target=1)["invariance"].verdict == "skipped"


@pytest.mark.parametrize("target", [torch.tensor(1), torch.tensor([1]), torch.tensor([0, 1, 2]), [0, 1, 2], (1,)])
def test_targets_of_every_form(target):
    assert igfast.diagnose(mlp(), X, target=target).good


def test_a_model_that_works_in_place():
    def model(x):
        return x.sub_(0.5).tanh_()

    before = X.clone()
    assert igfast.diagnose(model, X, target=0).good
    assert torch.equal(X, before)


def test_no_examples():
    with pytest.raises(igfast.InputError, match="at least one example"):
        igfast.diagnose(mlp(), X[:0], target=0)


def test_several_inputs_and_arguments():
    def forward(a, b, scale):
        return (a.tanh() * b.mean(dim=1, keepdim=True)) * scale

    diagnosis = igfast.diagnose(
        forward, (X, X[:, :2] + 1), [0, 1, 2], (0, 0), torch.tensor([[1.0], [2.0], [3.0]]).double()
    )
    assert diagnosis.good
    assert diagnosis["symmetry"].verdict == "good"


def test_nothing_of_the_users_is_changed():
    model = mlp(nn.BatchNorm1d(16).double(), nn.Dropout(0.5)).train()
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    igfast.diagnose(model, X, target=1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.training
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.filterwarnings("ignore:the output of forward_func for one example depends")
def test_it_renders():
    diagnosis = igfast.diagnose(mlp(), X, target=1)
    assert len(diagnosis.alphas) == len(diagnosis.values) == len(diagnosis.gradients) == 21
    assert [axes.get_title() for axes in diagnosis.plot().axes] == ["F", "norm of the gradient"]
    assert diagnosis._repr_html_().count("<tr>") == 13
    with pytest.raises(KeyError, match="no check 'x'"):
        diagnosis["x"]
    with pytest.raises(igfast.ArgumentError, match="no path to draw: Dropout in training mode"):
        igfast.diagnose(mlp(nn.Dropout(0.5)).train(), X, target=1).plot()
    with pytest.raises(igfast.ArgumentError, match="no path to draw: Not where examples depend on each other"):
        igfast.diagnose(Calls(lambda x: x - x.mean(0) / 2), X, target=1).plot()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": 3}, igfast.ArgumentTypeError, "model must be callable; got 3"),
        ({"n_steps": 1}, igfast.ArgumentError, "n_steps must be at least 2"),
        ({"max_steps": 10}, igfast.ArgumentError, "max_steps at least n_steps; got 50 and 10"),
        ({"inputs": [1]}, igfast.InputTypeError, "inputs must be a tensor"),
        ({"baselines": torch.zeros(1, 5)}, igfast.BaselineError, "baselines"),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        igfast.diagnose(**{"model": mlp(), "inputs": X, "target": 0, **arguments})


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("n_classes", [1, 3])
def test_outputs_that_drop_the_dimension_of_one_example(n_classes, rows):
    model = mlp()
    model[-1] = nn.Linear(16, n_classes).double()
    target = None if n_classes == 1 else 1
    diagnosis = igfast.diagnose(lambda x: model(x).squeeze(), X[:rows], target=target)
    assert diagnosis.good
    assert diagnosis["sensitivity"].verdict == "good"
    assert diagnosis["saturation"].verdict == "good"


@pytest.mark.filterwarnings("ignore:forward_func does not take other numbers of path points")
def test_a_model_of_a_fixed_batch():
    weight = torch.rand(6, 3, dtype=torch.float64)
    diagnosis = igfast.diagnose(lambda x: x.reshape(1, 6) @ weight, X[:1], target=0)
    assert diagnosis["completeness"].verdict == "good"
    assert diagnosis["sensitivity"].verdict == "skipped"
    assert "does not take the check's inputs (RuntimeError" in diagnosis["sensitivity"].text


def test_classes_that_are_masked_with_infinities():
    model = mlp()
    mask = torch.tensor([0.0, 0.0, -torch.inf], dtype=torch.float64)
    diagnosis = igfast.diagnose(lambda x: model(x) + mask, X, target=1)
    assert diagnosis["rows"].verdict == "good"
    assert diagnosis["sensitivity"].verdict == "good"

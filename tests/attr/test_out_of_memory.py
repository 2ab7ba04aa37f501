"""A budget is kept, a chunk that does not fit is repeated with less, and the result is the undisturbed one."""

import types
import warnings

import pytest
import torch
from torch import nn

import igfast
from igfast.lean.lending import acting
from igfast.lean.recompute import repeated_blocks
from tests import models
from tests.oracle import relative_difference

MIB = 2**20
X = torch.randn(2, 3, 8, 8, dtype=torch.float64)
ERRORS = {
    "python": lambda: MemoryError(),
    "cpu": lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
}


class Failing(nn.Module):
    """A network whose k-th pass with a gradient fails, in the forward or the backward pass."""

    def __init__(self, network, k, error, in_backward=False):
        super().__init__()
        self.network, self.k, self.error, self.in_backward, self.passes = network, k, error, in_backward, 0

    def forward(self, x):
        output = self.network(x)
        self.passes += torch.is_grad_enabled()
        if torch.is_grad_enabled() and self.passes == self.k:
            if not self.in_backward:
                raise self.error()
            output.register_hook(self.fail)
        return output

    def fail(self, grad):
        raise self.error()


@pytest.mark.parametrize("in_backward", [False, True])
@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("k", range(1, 11))
def test_a_failure_at_any_chunk(k, kind, in_backward):
    network = models.convnet()
    options = {"target": 1, "n_steps": 20, "internal_batch_size": 4, "return_convergence_delta": True}
    wanted, wanted_delta = igfast.IntegratedGradients(network).attribute(X, **options)
    failing = Failing(network, k, ERRORS[kind], in_backward)
    with pytest.warns(igfast.IgfastWarning, match="out of memory, so .* chunks of 2 instead of 4 rows") as caught:
        got, delta, report = igfast.IntegratedGradients(failing).attribute(X, **options, return_report=True)
    assert len(caught) == 1
    assert relative_difference(got, wanted) <= 1e-12
    assert torch.allclose(delta, wanted_delta, rtol=0, atol=1e-12)
    assert report.n_rows == 40
    assert report.n_evaluations == 44
    assert report.chunks == {4: k - 1, 2: 2 * (11 - k)} if k > 1 else {2: 20}
    assert report.notes == ("chunks of 2 instead of 4 rows",)


def test_later_calls_begin_with_the_size_that_fitted():
    failing = Failing(models.convnet(), 3, ERRORS["cpu"])
    explainer = igfast.IntegratedGradients(failing)
    with pytest.warns(igfast.IgfastWarning, match="out of memory"):
        explainer.attribute(X, target=1, n_steps=20, internal_batch_size=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error", igfast.IgfastWarning)
        _, report = explainer.attribute(X, target=1, n_steps=20, internal_batch_size=4, return_report=True)
    assert report.chunks == {2: 20}


def test_random_draws_of_a_failed_chunk_are_drawn_once():
    drops, x = nn.Sequential(models.mlp(), nn.Dropout(0.5)).train(), torch.randn(2, 3, dtype=torch.float64)
    torch.manual_seed(3)
    wanted = igfast.IntegratedGradients(drops).attribute(x, target=1, n_steps=6, internal_batch_size=2)
    torch.manual_seed(3)
    failing = Failing(drops, 1, ERRORS["cpu"])
    with pytest.warns(igfast.IgfastWarning, match="chunks of 2 instead of 4"):
        got = igfast.IntegratedGradients(failing).attribute(x, target=1, n_steps=6, internal_batch_size=4)
    assert relative_difference(got, wanted) <= 1e-12


def test_lean_execution_is_not_blamed():
    failing = Failing(models.convnet(), 2, ERRORS["cpu"])
    with pytest.warns(igfast.IgfastWarning, match="out of memory"):
        _, report = igfast.IntegratedGradients(failing, lean=True).attribute(
            X, target=1, n_steps=20, internal_batch_size=4, return_report=True
        )
    assert report.lean


class Wide(nn.Module):
    """Needs `mebibytes` for each row in each of its layers, which are repeated blocks."""

    def __init__(self, mebibytes, n_layers):
        super().__init__()
        self.mebibytes = mebibytes
        self.layers = nn.ModuleList(nn.Sequential(Sine(), Sine()) for _ in range(n_layers))

    def forward(self, x):
        h = x.repeat(1, self.mebibytes * MIB // (8 * x.shape[1]))
        for layer in self.layers:
            h = layer(h)
        return h.mean(1)


class Sine(nn.Module):
    def forward(self, x):
        return x.sin()


class Blocks(nn.Module):
    """Three blocks with residual connections."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()) for _ in range(3)
        )
        self.double().eval()

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return x.flatten(1)


FEATURES = torch.randn(8, 64, dtype=torch.float64)


def test_a_budget_is_kept():
    network = Wide(4, 2)  # some 20 MiB for each row
    wanted = igfast.IntegratedGradients(network).attribute(FEATURES, n_steps=4)
    with pytest.warns(igfast.IgfastWarning, match="out of memory"):
        got, report = igfast.IntegratedGradients(network, memory_budget="160MiB").attribute(
            FEATURES, n_steps=4, return_report=True
        )
    assert relative_difference(got, wanted) <= 1e-12
    assert report.budget_bytes == 160 * MIB
    assert 20 * MIB < report.peak_bytes <= 160 * MIB
    assert max(report.chunks) < 8


def test_sizes_that_would_not_fit_are_not_tried():
    network = Wide(4, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", igfast.IgfastWarning)
        x = torch.randn(1, 2**17, dtype=torch.float64)  # 1 MiB: the first chunk has 2 rows, and would grow to 4
        _, report = igfast.IntegratedGradients(network, memory_budget="90MiB").attribute(
            x, n_steps=40, return_report=True
        )
    assert set(report.chunks) == {2}


def test_blocks_are_recomputed_where_one_row_does_not_fit():
    network = Wide(8, 6)  # 13 tensors of 8 MiB; recomputed, 6 and what one block needs
    wanted = igfast.IntegratedGradients(network).attribute(FEATURES[:1], n_steps=4)
    explainer = igfast.IntegratedGradients(network, memory_budget="112MiB")
    with pytest.warns(igfast.IgfastWarning) as caught:
        got, report = explainer.attribute(FEATURES[:1], n_steps=4, return_report=True)
    assert relative_difference(got, wanted) <= 1e-12
    assert report.notes[-1] == "6 repeated blocks of the model computed again in the backward pass"
    assert len(caught) == len(report.notes) == 3  # 4 rows, 2 rows, 1 row
    assert report.peak_bytes <= 112 * MIB
    assert all("forward" not in layer.__dict__ for layer in network.layers)
    with warnings.catch_warnings():
        warnings.simplefilter("error", igfast.IgfastWarning)
        assert relative_difference(explainer.attribute(FEATURES[:1], n_steps=4), wanted) <= 1e-12


def test_one_row_that_does_not_fit():
    explainer = igfast.IntegratedGradients(Wide(8, 2), memory_budget="24MiB")
    with (
        pytest.warns(igfast.IgfastWarning),
        pytest.raises(
            igfast.IgfastMemoryError, match=r"one path point, \(1, 64\), does not fit .* of 24 MiB .* needs more"
        ),
    ):
        explainer.attribute(FEATURES, n_steps=4)


def test_results_that_do_not_fit():
    x = torch.randn(64, 2**16, dtype=torch.float64)
    with pytest.raises(igfast.IgfastMemoryError, match="the attribution does not fit in the memory of cpu"):
        igfast.IntegratedGradients(lambda x: x.sum(1), memory_budget="16MiB").attribute(x, n_steps=4)


@pytest.mark.parametrize("lean", ["auto", False])
def test_recomputation_has_the_same_gradients(lean):
    network = Blocks()
    wanted = igfast.IntegratedGradients(network).attribute(X, target=1, n_steps=5)
    failing = Failing(network, 1, ERRORS["cpu"])
    with pytest.warns(igfast.IgfastWarning, match="3 repeated blocks"):
        got, report = igfast.IntegratedGradients(failing, lean=lean).attribute(
            X, target=1, n_steps=5, internal_batch_size=1, return_report=True
        )
    assert relative_difference(got, wanted) <= 1e-12
    assert bool(report.lean) is (lean == "auto")


def test_a_layer_inside_a_repeated_block_is_not_recomputed_around():
    # The recomputation would not see the layer's replaced values.
    network = Blocks()
    layer = network.blocks[1][0]
    wanted = igfast.LayerIntegratedGradients(network, layer).attribute(X, target=1, n_steps=5)
    failing = Failing(network, 1, ERRORS["cpu"])
    with pytest.warns(igfast.IgfastWarning, match="2 repeated blocks"):
        got = igfast.LayerIntegratedGradients(failing, layer).attribute(X, target=1, n_steps=5, internal_batch_size=1)
    assert relative_difference(got, wanted) <= 1e-12


class Stage(nn.Module):
    """Blocks of a kind, which it runs one after another."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(2, 2), nn.ReLU()) for _ in range(2)])

    def forward(self, x):
        return self.blocks[1](self.blocks[0](x))


def test_repeated_blocks_are_the_outermost_of_a_kind():
    head = nn.Sequential(nn.Dropout(), nn.Linear(2, 2))
    stages = nn.ModuleDict({"stages": nn.ModuleList([Stage(), Stage(), Stage()]), "head": head})
    assert repeated_blocks(stages) == list(stages["stages"])
    one = Stage()
    assert repeated_blocks(nn.ModuleDict({"one": one, "head": nn.Linear(2, 2)})) == list(one.blocks)
    assert repeated_blocks(nn.Linear(2, 2)) == []
    assert repeated_blocks(None) == []


def test_what_only_holds_blocks_is_no_block():
    # Lists are never called. A network of two sequences, of blocks and a head, would be computed again as a whole.
    down, up = nn.ModuleList([Stage(), Stage()]), nn.ModuleList([Stage(), Stage()])
    assert repeated_blocks(nn.ModuleDict({"down": down, "up": up})) == [*down, *up]
    features, head = nn.Sequential(*down), nn.Sequential(nn.Dropout(), nn.Linear(2, 2))
    assert repeated_blocks(nn.ModuleDict({"features": features, "classifier": head})) == list(down)


@pytest.mark.parametrize("bound", [False, True])
def test_a_forward_of_the_blocks_own_is_put_back(bound):
    block = nn.Sequential(nn.Linear(2, 2))
    own = types.MethodType(lambda self, x: x + 1, block) if bound else lambda x: x + 1
    block.forward = own
    with acting({block: lambda forward, args, kwargs: forward(*args, **kwargs)}):
        assert block.forward is not own
        with acting({block: lambda forward, args, kwargs: forward(*args, **kwargs)}):
            pass
        assert block.forward is not own
    assert block.forward is own


def test_blocks_that_do_not_do_the_same_twice():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.calls = nn.Identity(), 0

        def forward(self, x):
            self.calls += 1
            return x.sin().cos() if self.calls % 2 else x.sin()

    network = nn.Sequential(Counts(), Counts(), nn.Flatten())
    failing = Failing(network, 1, ERRORS["cpu"])
    with (
        pytest.warns(igfast.IgfastWarning, match="2 repeated blocks"),
        pytest.raises(igfast.IgfastMemoryError, match="cannot be computed again"),
    ):
        igfast.IntegratedGradients(failing).attribute(X[:1], target=1, n_steps=5, internal_batch_size=1)


@pytest.mark.filterwarnings("ignore:examples are taken to be independent")
def test_layer_values_are_read_in_smaller_chunks():
    network = models.convnet()
    wanted = igfast.LayerIntegratedGradients(network, network[1]).attribute(X, target=1, n_steps=5)
    calls = []

    class FailsOnce(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, x):
            calls.append(x.shape[0])
            if len(calls) == 1:
                raise MemoryError
            return self.network(x)

    with pytest.warns(igfast.IgfastWarning, match="chunks of 1 instead of 2 rows"):
        got = igfast.LayerIntegratedGradients(FailsOnce(), network[1]).attribute(X, target=1, n_steps=5)
    assert relative_difference(got, wanted) <= 1e-12
    assert calls[:3] == [2, 1, 1]


def test_a_callers_own_call_that_does_not_fit():
    """Without a graph, in the caller's layout, it may take more than a lean pass; so it is done without."""

    class NeedsGrad(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = models.convnet()

        def forward(self, x):
            if not torch.is_grad_enabled():
                raise MemoryError
            return self.network(x)

    for x in (X, X[:1]):
        wanted = igfast.IntegratedGradients(models.convnet()).attribute(x, target=1, n_steps=5)
        explainer = igfast.IntegratedGradients(NeedsGrad())
        with pytest.warns(igfast.IgfastWarning, match="path points are taken to be independent of each other"):
            got, report = explainer.attribute(x, target=1, n_steps=5, return_report=True)
        assert relative_difference(got, wanted) <= 1e-12
        assert report.notes[0].startswith("the inputs do not fit in one forward pass")
        assert report.notes[1] == "no memory to compare outputs with those of a step alone: stacked"


def test_a_comparison_that_had_no_memory_is_made_by_a_later_call():
    class NoRoomForASecond(nn.Module):
        """Has no memory for the second pass without a graph, which compares a step alone."""

        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.norm, self.head, self.calls = nn.BatchNorm1d(6).double(), nn.Linear(6, 2).double(), 0

        def forward(self, x):
            if not torch.is_grad_enabled():
                self.calls += 1
                if self.calls == 2:
                    raise MemoryError("not enough memory")
            return self.head(self.norm(x))

    model, x = NoRoomForASecond().train(), torch.randn(4, 6, dtype=torch.float64)
    explainer = igfast.IntegratedGradients(model)
    with pytest.warns(igfast.IgfastWarning, match="path points are taken to be independent of each other"):
        _, report = explainer.attribute(x, target=1, n_steps=5, return_report=True)
    assert report.notes == ("no memory to compare outputs with those of a step alone: stacked",)
    with pytest.warns(igfast.IgfastWarning, match="depends on the others in its batch"):
        explainer.attribute(x, target=1, n_steps=5)

"""Models whose rows belong together: one whole step at a time, the caller's arguments and target untouched."""

import captum.attr
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import igfast
from tests.oracle import naive_integrated_gradients, relative_difference

DOUBLE = torch.float64


def both(forward, inputs, n_rows, **options):
    """igfast's attributions as a user calls it, Captum's a whole step at a time, and igfast's report."""
    theirs = captum.attr.IntegratedGradients(forward).attribute(inputs, internal_batch_size=n_rows, **options)
    ours, report = igfast.IntegratedGradients(forward).attribute(inputs, return_report=True, **options)
    return ours, theirs, report


def check(forward, inputs, n_rows, why, **options):
    ours, theirs, report = both(forward, inputs, n_rows, **options)
    assert relative_difference(ours, theirs) <= 2e-7
    assert any(note.startswith("whole steps") and why in note for note in report.notes), report.notes


class Graph(nn.Module):
    """Two rounds of messages; one row for each node, or for each graph."""

    def __init__(self, pools):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.pools = nn.Linear(5, 8).double(), nn.Linear(8, 3).double(), pools

    def forward(self, x, edge_index, batch=None):
        for layer in (self.first, self.second):
            x = torch.tanh(layer(x + torch.zeros_like(x).index_add(0, edge_index[1], x[edge_index[0]])))
        if not self.pools:
            return x
        n_graphs = 1 if batch is None else int(batch.max()) + 1
        batch = torch.zeros(len(x), dtype=torch.int64) if batch is None else batch
        return torch.zeros(n_graphs, 3, dtype=x.dtype).index_add(0, batch, x)


NODES = torch.randn(12, 5, dtype=DOUBLE)
EDGES = torch.randint(0, 12, (2, 30))


def test_a_graph_with_one_row_for_all_nodes():
    check(Graph(True), NODES, 12, "additional_forward_args[0]", target=1, additional_forward_args=EDGES)
    check(lambda x: Graph(True)(x, EDGES), NODES, 12, "the output has 1 entries for 12 examples", target=1)


def test_a_graph_with_a_row_for_each_node():
    check(Graph(False), NODES, 12, "additional_forward_args[0]", target=1, additional_forward_args=EDGES)


def test_a_mini_batch_of_graphs_with_a_target_for_each():
    batch = torch.arange(12) // 4
    args = EDGES % 4 + 4 * (torch.arange(30) % 3), batch
    for target in (torch.tensor([0, 2, 1]), [0, 2, 1]):
        check(Graph(True), NODES, 12, "additional_forward_args[0]", target=target, additional_forward_args=args)
    with pytest.raises(igfast.TargetError, match="target does not fit forward_func's output"):
        igfast.IntegratedGradients(Graph(True)).attribute(NODES, target=[0, 1], additional_forward_args=args)


def test_edges_are_the_inputs_and_the_graph_an_object():
    class Holder:
        x, edge_index = NODES, EDGES

    def through_edges(mask, graph):
        messages = graph.x[graph.edge_index[0]] * mask[:, None]
        return torch.tanh(graph.x + torch.zeros_like(graph.x).index_add(0, graph.edge_index[1], messages)).sum(0)[None]

    mask = torch.ones(30, dtype=DOUBLE)
    check(through_edges, mask, 30, "1 entries for 30", target=1, additional_forward_args=Holder(), baselines=0)


def test_a_sparse_adjacency():
    adjacency = torch.zeros(12, 12, dtype=DOUBLE).index_put_((EDGES[0], EDGES[1]), torch.ones(30, dtype=DOUBLE))
    weight = torch.randn(5, 3, dtype=DOUBLE)

    def forward(x, adjacency):
        return torch.tanh(torch.sparse.mm(adjacency, x @ weight))

    sparse = adjacency.to_sparse()
    ours, report = igfast.IntegratedGradients(forward).attribute(
        NODES, target=1, additional_forward_args=sparse, return_report=True
    )
    wanted = igfast.IntegratedGradients(lambda x: torch.tanh(adjacency @ (x @ weight))).attribute
    with pytest.warns(igfast.IgfastWarning, match="does not take other numbers of path points"):
        assert relative_difference(ours, wanted(NODES, target=1)) <= 1e-12
    assert "additional_forward_args[0]" in report.notes[0]


@pytest.mark.parametrize("size", [None, 1, 20])
def test_a_bag_of_patches(size):
    torch.manual_seed(0)
    encode, score, head = nn.Linear(12, 16).double(), nn.Linear(16, 1).double(), nn.Linear(16, 2).double()

    def forward(bag):
        h = torch.relu(encode(bag))
        return head(torch.softmax(score(h).T, dim=1) @ h)

    bag = torch.randn(20, 12, dtype=DOUBLE)
    theirs = captum.attr.IntegratedGradients(forward).attribute(bag, target=1, internal_batch_size=20)
    ours = igfast.IntegratedGradients(forward).attribute(bag, target=1, internal_batch_size=size)
    assert relative_difference(ours, theirs) <= 1e-7


@pytest.mark.parametrize("n_rows", [7, 5])
def test_an_attention_mask_of_the_length_also_where_that_is_the_batch(n_rows):
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).double().eval()
    mask = torch.triu(torch.full((7, 7), -torch.inf, dtype=DOUBLE), diagonal=1)
    x = torch.randn(n_rows, 7, 8, dtype=DOUBLE)

    def forward(x, mask):
        return layer(x, src_mask=mask).mean(1)

    wanted = igfast.IntegratedGradients(lambda x: forward(x, mask)).attribute(x, target=1)
    explainer = igfast.IntegratedGradients(forward)
    options = {"target": 1, "additional_forward_args": mask, "return_report": True}
    if n_rows == 7:  # whose rows are taken for those of the examples, until they are stacked
        with pytest.warns(igfast.IgfastWarning, match="does not take other numbers of path points"):
            got, report = explainer.attribute(x, **options)
    else:
        got, report = explainer.attribute(x, **options)
    assert relative_difference(got, wanted) <= 1e-12
    assert report.notes[0].startswith("whole steps, one at a time")


def test_sequence_first_inputs():
    torch.manual_seed(0)
    lstm, head = nn.LSTM(6, 8).double(), nn.Linear(8, 2).double()
    x = torch.randn(9, 1, 6, dtype=DOUBLE)  # length, batch, features
    check(lambda x: head(lstm(x)[0][-1]), x, 9, "1 entries for 9", target=1)


def test_an_embedding_bag_with_offsets():
    torch.manual_seed(0)
    bag, head = nn.EmbeddingBag(30, 6, mode="sum").double(), nn.Linear(6, 2).double()

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.bag, self.head = bag, head

        def forward(self, tokens, offsets):
            return torch.tanh(self.head(torch.tanh(self.bag(tokens, offsets))))

    model, tokens, offsets = Classifier(), torch.randint(0, 30, (11,)), torch.tensor([0, 4, 9])
    options = {"target": 1, "additional_forward_args": offsets}
    ours = igfast.LayerIntegratedGradients(model, model.bag).attribute(tokens, **options)
    theirs = captum.attr.LayerIntegratedGradients(model, model.bag).attribute(tokens, internal_batch_size=3, **options)
    assert relative_difference(ours, theirs) <= 1e-7


class AcrossTheBatch(nn.Module):
    """Attends to the other examples of a batch; nothing in its shapes shows it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(6, 6).double()

    def forward(self, x):
        h = self.layer(x)
        return torch.softmax(h @ h.T, dim=1) @ h


@pytest.mark.parametrize("size", [None, 2, 4, 8])
@pytest.mark.parametrize("make", [AcrossTheBatch, lambda: nn.BatchNorm1d(6).double().train()])
def test_what_shapes_do_not_show_is_measured_and_said_once(make, size):
    model, x = make(), torch.randn(4, 6, dtype=DOUBLE)
    theirs = captum.attr.IntegratedGradients(model).attribute(x, target=1, internal_batch_size=4)
    explainer = igfast.IntegratedGradients(model)
    if size == 4:  # a whole step in any case
        assert relative_difference(explainer.attribute(x, target=1, internal_batch_size=4), theirs) <= 1e-7
        return
    with pytest.warns(igfast.IgfastWarning, match="depends on the others in its batch") as caught:
        ours = explainer.attribute(x, target=1, internal_batch_size=size)
    assert len(caught) == 1
    assert relative_difference(ours, theirs) <= 1e-7
    assert relative_difference(explainer.attribute(x, target=1, internal_batch_size=size), theirs) <= 1e-7


@pytest.mark.parametrize("size", [None, 2])
def test_kernels_that_round_differently_for_another_number_of_rows(size):
    """As a GPU's convolutions do, though less: more on a CPU is a model that depends on the number of rows."""
    network = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()

    def forward(x):
        return network(x) * (1 + 1e-4 * (len(x) % 5))

    x = torch.randn(4, 6, dtype=DOUBLE)
    _, report = igfast.IntegratedGradients(forward).attribute(x, target=1, internal_batch_size=size, return_report=True)
    assert report.notes == ()


def test_a_model_with_a_memory_is_named_as_one():
    class Remembers(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = 0

        def forward(self, x):
            output = x.tanh() + self.last
            self.last = output.detach().mean()
            return output

    with pytest.warns(igfast.IgfastWarning, match="changes from call to call"):
        igfast.IntegratedGradients(Remembers()).attribute(torch.randn(2, 3), target=1)


@pytest.mark.parametrize("size", [None, 1, 2])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("classes", [1, 4])
def test_outputs_that_drop_the_dimension_of_a_single_row(classes, batch, size):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, classes)).double()
    x = torch.randn(batch, 5, dtype=DOUBLE)
    target = None if classes == 1 else 2
    wanted = igfast.IntegratedGradients(lambda x: network(x)).attribute(x, target=None if classes == 1 else 2)
    got, delta = igfast.IntegratedGradients(lambda x: network(x).squeeze()).attribute(
        x, target=target, internal_batch_size=size, return_convergence_delta=True
    )
    assert relative_difference(got, wanted) <= 1e-12
    assert delta.shape == (batch,)
    assert float(delta.abs().max()) < 1e-6


def test_one_number_for_all_that_is_not_stacked():
    """Captum divides it by the number of steps, without a word."""

    def error(x):
        return F.mse_loss(x.sin(), x).reshape(1)

    x = torch.randn(1, 6, dtype=DOUBLE)
    with pytest.warns(igfast.IgfastWarning, match="returns 1 entries for 50 examples"):
        got, delta = igfast.IntegratedGradients(error).attribute(x, return_convergence_delta=True)
    assert abs(float(delta)) < 1e-9
    assert relative_difference(got, captum.attr.IntegratedGradients(error).attribute(x, internal_batch_size=1)) <= 1e-7


def test_the_delta_of_totals_where_entries_are_no_examples():
    _, delta = igfast.IntegratedGradients(Graph(True)).attribute(
        NODES, target=1, additional_forward_args=EDGES, return_convergence_delta=True
    )
    assert delta.shape == (1,)
    assert abs(float(delta)) < 1e-6


def test_arguments_that_are_worked_on_in_place_stay_the_callers():
    def forward(x, offset):
        return x.tanh().sum(0, keepdim=True) + offset.mul_(2)

    offset = torch.ones(3, dtype=DOUBLE)
    x = torch.randn(4, 3, dtype=DOUBLE)
    got = igfast.IntegratedGradients(forward).attribute(x, target=1, additional_forward_args=offset)
    assert torch.equal(offset, torch.ones(3, dtype=DOUBLE))
    exact = naive_integrated_gradients(lambda x: x.tanh().sum(0, keepdim=True)[:, 1], (x,), (x * 0,), 50)
    assert relative_difference(got, exact[0]) <= 1e-12


def test_stacking_is_checked_where_chunks_grow_to_it():
    """The first chunk is one step of four images, those after it are of two."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 2, 3, stride=8), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2 * 28 * 28, 2))
    x = torch.randn(4, 3, 224, 224)
    with pytest.warns(igfast.IgfastWarning, match="depends on the others in its batch"):
        ours = igfast.IntegratedGradients(model.train()).attribute(x, target=1, n_steps=12)
    theirs = captum.attr.IntegratedGradients(model).attribute(x, target=1, n_steps=12, internal_batch_size=4)
    assert relative_difference(ours, theirs) <= 1e-4


def test_splitting_is_checked_where_memory_asks_for_it():
    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.norm, self.failed = nn.BatchNorm1d(6).double(), False

        def forward(self, x):
            if torch.is_grad_enabled() and not self.failed:
                self.failed = True
                raise MemoryError
            return self.norm(x)

    model, x = Fails().train(), torch.randn(8, 6, dtype=DOUBLE)
    with (
        pytest.warns(igfast.IgfastWarning, match="chunks of 4 instead of 8 rows"),
        pytest.warns(igfast.IgfastWarning, match="depends on the others in its batch"),
    ):
        ours = igfast.IntegratedGradients(model).attribute(x, target=1, internal_batch_size=8)
    exact = naive_integrated_gradients(lambda points: model(points)[:, 1], (x,), (torch.zeros_like(x),), 50)
    assert relative_difference(ours, exact[0]) <= 1e-12


def test_what_is_known_of_one_function_is_not_taken_for_another():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layer, self.norm = nn.Linear(6, 6).double(), nn.BatchNorm1d(6).double()

        def forward(self, x, across=False):
            return self.across(x) if across else self.layer(x)

        def across(self, x):
            return self.layer(x) - self.layer(x).mean(0)

    model, x = Model(), torch.randn(4, 6, dtype=DOUBLE)
    options = {"target": 1, "n_steps": 5}
    igfast.IntegratedGradients(model).attribute(x, additional_forward_args=(False,), **options)
    with pytest.warns(igfast.IgfastWarning, match="depends on the others"):
        igfast.IntegratedGradients(model.across).attribute(x, **options)
    with pytest.warns(igfast.IgfastWarning, match="depends on the others"):
        igfast.IntegratedGradients(model).attribute(x, additional_forward_args=(True,), **options)
    of_neuron = igfast.NeuronIntegratedGradients(model, model.layer)
    of_neuron.attribute(x, 2, n_steps=5)
    with pytest.warns(igfast.IgfastWarning, match="depends on the others"):
        of_neuron.attribute(x, lambda value: (value - value.mean(0)).square().sum(1), n_steps=5)

    explainer = igfast.IntegratedGradients(lambda x: model.norm(x))
    model.norm.eval()
    explainer.attribute(x, **options)
    model.norm.train()
    with pytest.warns(igfast.IgfastWarning, match="depends on the others"):
        explainer.attribute(x, **options)


def test_a_step_that_sets_the_scale_of_all_is_not_compared_alone():
    x = torch.rand(1, 6, dtype=DOUBLE)
    with pytest.warns(igfast.IgfastWarning, match="depends on the others"):
        igfast.IntegratedGradients(lambda x: x / x.max()).attribute(x, target=1)


def test_a_transformer_with_padding_that_has_a_path_without_gradients():
    """PyTorch zeroes padded positions where no graph is recorded, and does not where one is."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    padding = torch.tensor([[False, False, False, True, True]])
    x = torch.randn(1, 5, 8)
    _, report = igfast.IntegratedGradients(lambda x, mask: encoder(x, src_key_padding_mask=mask).mean(1)).attribute(
        x, target=1, additional_forward_args=padding, return_report=True
    )
    assert report.notes == ()


def test_targets_are_counted_for_a_delta_too():
    explainer = igfast.IntegratedGradients(nn.Linear(6, 3).double())
    x = torch.randn(3, 6, dtype=DOUBLE)
    attributions = explainer.attribute(x, target=[0, 1, 2])
    with pytest.raises(igfast.TargetError, match="one entry per example, 3; got 2"):
        explainer.compute_convergence_delta(attributions, 0, x, target=[0, 1])


def test_integers_that_belong_together():
    adjacency, weight = torch.rand(12, 12, dtype=DOUBLE), torch.randn(5, 3, dtype=DOUBLE)
    nodes = torch.randint(0, 5, (12, 5))

    def forward(x):
        return torch.tanh(adjacency @ (x.double() @ weight))

    with pytest.warns(igfast.IgfastWarning, match="does not take other numbers of path points"):
        got = igfast.IntegratedGradients(forward).attribute(nodes, target=1)
    x = nodes.to(torch.get_default_dtype())
    exact = naive_integrated_gradients(lambda x: forward(x)[:, 1], (x,), (x * 0,), 50)
    assert relative_difference(got, exact[0]) <= 1e-5

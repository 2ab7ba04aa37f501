"""Blocks that run again for the gradient: the gradients are autograd's, whatever goes around the blocks."""

import weakref

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_flatten

from igfast.lean import Execution
from igfast.lean.recompute import NotRecomputableError

torch.manual_seed(0)


class Block(nn.Module):
    def __init__(self, size=6):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(size, 8), nn.Tanh(), nn.Linear(8, size))
        self.calls = 0

    def forward(self, x, *others, scale=None):
        self.calls += 1
        x = x + self.body(x)
        for other in others:
            x = x * other
        return x if scale is None else x * scale


class Network(nn.Module):
    def __init__(self, run, block=Block, n=3):
        super().__init__()
        self.blocks = nn.ModuleList(block() for _ in range(n))
        self.run = run
        self.double().eval()

    def forward(self, x):
        return self.run(self.blocks, x)


def chain(blocks, x):
    for block in blocks:
        x = block(x)
    return x


def residual(blocks, x):
    for block in blocks:
        x = x + block(x.sin())
    return x.cos()


def around(blocks, x):
    first = blocks[0](x)
    return blocks[2](blocks[1](first) + first) + first.sin() + x


def arguments(blocks, x):
    shared = x.sigmoid()
    for block in blocks:
        x = block(x, shared, scale=shared.mean(0, keepdim=True))
    return x


def in_place(blocks, x):
    for block in blocks:
        x = block(x)
        x += 1
        x.mul_(0.5)
    return x


def twice(blocks, x):
    return blocks[1](blocks[0](blocks[1](x)))


def unused(blocks, x):
    blocks[0](x)
    return blocks[1](x)


def without_gradient(blocks, x):
    with torch.no_grad():
        start = blocks[0](x)
    return blocks[1](start) * x


def views(blocks, x):
    for block in blocks:
        x = block(x.view(2, -1, 6)).view(-1, 6)[:]
    return x


RUNS = [chain, residual, around, arguments, in_place, twice, unused, without_gradient, views]


def gradients(network, x, n_targets, recomputed, lean=True):
    execution = Execution("" if lean else "not now", module=network)
    if recomputed:
        assert "3 repeated blocks" in execution.save_more(torch.device("cpu"))
    x = x.clone().requires_grad_()
    with torch.enable_grad():
        with execution.active():
            output = network(x)
        return list(execution.gradients([output[:, target] for target in range(n_targets)], (x,)))


@pytest.mark.parametrize("n_targets", [1, 4])
@pytest.mark.parametrize("lean", [True, False])
@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.__name__)
def test_gradients_are_autograds(run, lean, n_targets):
    network, x = Network(run), torch.randn(4, 6, dtype=torch.float64)
    wanted = gradients(network, x, n_targets, False, lean)
    got = gradients(network, x, n_targets, True, lean)
    for (one,), (other,) in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)
    assert len(got) == n_targets


@pytest.mark.parametrize("n_targets", [1, 5])
def test_each_block_runs_twice(n_targets):
    network = Network(residual)
    gradients(network, torch.randn(4, 6, dtype=torch.float64), n_targets, True)
    assert [block.calls for block in network.blocks] == [2, 2, 2]


def test_blocks_with_several_outputs():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Block()

        def forward(self, pair):
            h, mask, index = pair
            return self.inner(h) * mask, mask, index

    def run(blocks, x):
        pair = x, x.sigmoid(), torch.arange(3)
        for block in blocks:
            pair = block(pair)
        return pair[0] + pair[1]

    network, x = Network(run, Pair), torch.randn(4, 6, dtype=torch.float64)
    (wanted,), (got,) = (gradients(network, x, 1, recomputed)[0] for recomputed in (False, True))
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-13)


def test_random_draws_are_drawn_again():
    class Drops(Block):
        def forward(self, x):
            return super().forward(nn.functional.dropout(x, 0.5, self.training))

    network, x = Network(chain, Drops).train(), torch.randn(4, 6, dtype=torch.float64)
    found, states = [], []
    for recomputed in (False, True):
        torch.manual_seed(3)
        found.append(gradients(network, x, 2, recomputed))
        states.append(torch.get_rng_state())
    for (wanted,), (got,) in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-13)
    assert torch.equal(*states)


def test_autocast_of_the_model_holds_again():
    def run(blocks, x):
        with torch.autocast("cpu", torch.bfloat16):
            return chain(blocks, x)

    network, x = Network(run).float(), torch.randn(4, 6)
    (wanted,), (got,) = (gradients(network, x, 1, recomputed)[0] for recomputed in (False, True))
    torch.testing.assert_close(got, wanted, rtol=1e-2, atol=1e-3)
    assert not torch.is_autocast_enabled("cpu")


class Counts(Block):
    """Gives other numbers each time."""

    def forward(self, x):
        return super().forward(x) * self.calls


class Grows(Block):
    """Gives another shape each time."""

    def forward(self, x):
        x = super().forward(x)
        return torch.cat([x] * self.calls)[:, :6]


@pytest.mark.parametrize(("block", "text"), [(Counts, "other numbers"), (Grows, "other shapes")])
def test_blocks_that_do_something_else(block, text):
    with pytest.raises(NotRecomputableError, match=text):
        gradients(Network(chain, block), torch.randn(4, 6, dtype=torch.float64), 1, True)


def test_other_numbers_in_one_row_are_seen():
    class CountsOnce(Block):
        def forward(self, x):
            x = super().forward(x)
            return torch.cat([x[:1] * self.calls, x[1:]])

    with pytest.raises(NotRecomputableError, match="other numbers"):
        gradients(Network(chain, CountsOnce), torch.randn(20, 6, dtype=torch.float64), 1, True)


def test_blocks_that_read_what_they_are_not_given():
    class Reads(Block):
        def forward(self, x):
            return super().forward(x * shared[0])

    def run(blocks, x):
        shared[:] = [x.sin()]
        return chain(blocks, x)

    shared = []
    with pytest.raises(NotRecomputableError, match="reads a tensor"):
        gradients(Network(run, Reads), torch.randn(4, 6, dtype=torch.float64), 1, True)


@pytest.mark.parametrize("keep", [lambda x: x, lambda x: {"last": [x]}])
def test_blocks_that_keep_a_tensor_for_others(keep):
    class Keeps(Block):
        def forward(self, x):
            found = super().forward(x)
            self.kept = keep(found)
            return found

    def run(blocks, x):
        return chain(blocks, x) * tree_flatten(blocks[0].kept)[0][0]

    with pytest.raises(NotRecomputableError, match=r"keeps a tensor, as Keeps\.kept"):
        gradients(Network(run, Keeps), torch.randn(4, 6, dtype=torch.float64), 1, True)


def test_blocks_that_keep_constants_are_recomputed():
    class Keeps(Block):
        def forward(self, x):
            self.kept = self.body[0].weight * 2
            return super().forward(x)

    network, x = Network(chain, Keeps), torch.randn(4, 6, dtype=torch.float64)
    ((found,),), ((wanted,),) = (gradients(network, x, 1, recomputed) for recomputed in (True, False))
    torch.testing.assert_close(found, wanted)


def test_blocks_that_are_used_for_what_they_keep_alone():
    class Keeps(Block):
        def forward(self, x):
            self.kept = super().forward(x)
            return x.detach()

    def run(blocks, x):
        blocks[0](x)
        return blocks[0].kept * x

    with pytest.raises(NotRecomputableError, match="keeps a tensor"):
        gradients(Network(run, Keeps), torch.randn(4, 6, dtype=torch.float64), 1, True)


def test_goes_on_without_recomputation_where_another_measure_was_taken():
    network, x = Network(chain, Counts), torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    lean = Execution("", module=network)

    def evaluate():
        with lean.active():
            values = [network(x)]
        return list(lean.gradients(values, (x,)))

    lean.save_more(x.device)
    with pytest.raises(MemoryError, match="other numbers"):
        lean.attempt(evaluate)
    lean = Execution("", module=network)
    assert lean.save_more(torch.device("cuda"))
    assert lean.save_more(torch.device("cuda"))
    assert lean.attempt(evaluate)[0][0].shape == x.shape
    assert not lean.recomputes
    later = Execution("", module=network, recomputes=lean.recomputes)
    assert "main memory" in later.save_more(torch.device("cuda"))
    assert later.save_more(torch.device("cuda")) == ""


def test_a_pass_that_fails_leaves_nothing_behind():
    """The next chunk would not fit beside what was recorded for this one."""
    network, alive = Network(chain), []
    lean = Execution("", module=network)
    lean.save_more(torch.device("cpu"))
    network.blocks[1].register_forward_pre_hook(lambda _, args: alive.append(weakref.ref(args[0])))

    def evaluate():
        with torch.enable_grad(), lean.active():
            network(torch.randn(4, 6, dtype=torch.float64, requires_grad=True))
            raise MemoryError("no more")

    with pytest.raises(MemoryError):
        lean.attempt(evaluate)
    assert len(alive) == 1
    assert alive[0]() is None


def test_blocks_that_write_to_their_input():
    class Writes(Block):
        def forward(self, x):
            return super().forward(x.mul_(2))

    def run(blocks, x):
        return chain(blocks, x * 1)

    with pytest.raises(NotRecomputableError, match="writes to its input"):
        gradients(Network(run, Writes), torch.randn(4, 6, dtype=torch.float64), 1, True)


def test_modules_are_given_back():
    network = Network(chain)
    gradients(network, torch.randn(4, 6, dtype=torch.float64), 1, True)
    assert not any("forward" in part.__dict__ for part in network.modules())


def test_blocks_that_take_a_cache_are_refused():
    """A cache keeps what the first run put into it, which has no graph."""

    class Cache:
        def __init__(self):
            self.kept = None

        def update(self, x):
            self.kept = x if self.kept is None else self.kept
            return self.kept

    class Cached(Block):
        def forward(self, x, cache):
            return super().forward(cache.update(x.sin()))

    def run(blocks, x):
        for block in blocks:
            x = block(x, Cache())
        return x

    with pytest.raises(NotRecomputableError, match="a block takes a Cache"):
        gradients(Network(run, Cached), torch.randn(4, 6, dtype=torch.float64), 1, True)


def test_other_numbers_are_seen_in_half_precision():
    network = Network(chain, Counts).to(torch.bfloat16)
    with pytest.raises(NotRecomputableError, match="other numbers"):
        gradients(network, torch.randn(4, 6, dtype=torch.bfloat16), 1, True)


def test_errors_of_the_second_run():
    class Fails(Block):
        def forward(self, x):
            y = super().forward(x) + torch.rand(4, 6, dtype=torch.float64)
            if self.calls > 1:
                raise KeyError("once only")
            return y

    torch.manual_seed(0)
    torch.rand(3, 4, 6, dtype=torch.float64)  # as the forward pass of three blocks draws
    state = torch.get_rng_state()
    network = Network(chain, Fails).train()
    torch.manual_seed(0)
    with pytest.raises(NotRecomputableError, match="once only"):
        gradients(network, torch.ones(4, 6, dtype=torch.float64), 1, True)
    assert torch.equal(state, torch.get_rng_state())


def test_errors_of_the_first_run_without_a_graph():
    class Keeps(Block):
        def forward(self, x):
            y = super().forward(x)
            y.retain_grad()
            return y

    with pytest.raises(NotRecomputableError, match="can't retain_grad"):
        gradients(Network(chain, Keeps), torch.ones(4, 6, dtype=torch.float64), 1, True)


def test_inputs_that_were_written_to_after_the_block():
    def run(blocks, x):
        h = x * 1
        y = blocks[0](h)
        h += y.detach()
        return blocks[1](h + y)

    with pytest.raises(NotRecomputableError, match="was written to"):
        gradients(Network(run), torch.randn(4, 6, dtype=torch.float64), 1, True)


@pytest.mark.parametrize("error", [NotImplementedError("lean only"), UserWarning("mine")])
def test_what_lean_execution_or_the_user_raises_is_no_failure_of_the_recomputation(error):
    class Raises(Block):
        def forward(self, x):
            raise error

    with pytest.raises(type(error), match=str(error)):
        gradients(Network(chain, Raises), torch.ones(4, 6, dtype=torch.float64), 1, True)

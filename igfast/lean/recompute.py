"""Recomputation: repeated blocks of a model keep only their inputs, and run again for the gradient.

The forward pass runs each block without a graph, and cuts the graph there. The gradient goes from the last block to the
first: a block runs once more, and the gradients of all targets pass through it before the next one runs.

Source: Chen, Xu, Zhang, Guestrin 2016, "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._pytree import tree_flatten, tree_unflatten

from igfast.interrupts import must_pass
from igfast.lean.lending import acting, own_forward
from igfast.rng import RandomState, random_state

_SAME = 1e3  # times epsilon: a kernel that also prepares a gradient may round differently
_SAME_AT_MOST = 5e-2  # of the largest number, in half precision
_PARTS = 8
_PLAIN = (Tensor, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
OfLeaves = tuple[Tensor | None, ...]
"""A value's gradients with respect to the leaves; None where there is none."""


def repeated_blocks(module: nn.Module | None) -> list[nn.Module]:
    """Returns the outermost modules with submodules that have a sibling of the same class: layers, stages, blocks.

    A list of modules is never called, and a Sequential of repeated blocks gains nothing as a block. What they hold
    counts in their place.
    """
    if module is None or isinstance(module, nn.DataParallel):  # whose replicas would call the first device's blocks
        return []
    children = list(_composite_parts(module))
    kinds = Counter(map(type, children))
    found = (([child] if kinds[type(child)] > 1 else repeated_blocks(child)) for child in children)
    return list(dict.fromkeys(block for blocks in found for block in blocks))


def _composite_parts(module: nn.Module) -> Iterator[nn.Module]:
    """Yields the children that have submodules; in the place of lists and of sequences of blocks, what they hold."""
    for child in module.children():
        is_list = type(child).forward is nn.Module.forward
        if is_list or (type(child) is nn.Sequential and repeated_blocks(child)):
            yield from _composite_parts(child)
        elif next(child.children(), None) is not None:
            yield child


class NotRecomputableError(Exception):
    """A block does not do the same when it runs again."""


@dataclass
class _Call:
    """A call of a block.

    Attributes:
        block: the block.
        run: runs it again with other tensors in the place of `inputs`; returns the tensors it gives out.
        inputs: the tensors in its arguments that need a gradient.
        outputs: the tensors that it gave out.
        versions: of `outputs`, which change when one is written to.
        input_versions: of `inputs`.
        ends: for each output, the tensor without memory that its gradient arrives at.
        random: the random generators' state at the call, if the block may draw from them.
    """

    block: nn.Module
    run: Callable[[Sequence[Tensor]], list[Tensor]]
    inputs: list[Tensor]
    outputs: list[Tensor]
    versions: list[int]
    ends: list[Tensor]
    input_versions: list[int]
    random: RandomState | None


@dataclass
class Tape:
    """The calls of a model's blocks in one forward pass.

    Attributes:
        blocks: the blocks; those inside one another are not allowed.
        again: returns the context in which a block runs again.
    """

    blocks: Sequence[nn.Module]
    again: Callable[[], AbstractContextManager[object]]
    _calls: list[_Call] = field(default_factory=list, init=False)
    _n_modes: int = field(default=0, init=False)

    def forget(self) -> None:
        """Lets go of the tensors of the last forward pass."""
        self._calls = []

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Cuts the graph at the blocks' calls during the block; forgets those of earlier forward passes."""
        self.forget()
        self._n_modes = _n_modes()
        with acting({block: partial(self._record, block) for block in self.blocks}):
            yield

    def _record(
        self, block: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if _n_modes() > self._n_modes:
            raise NotRecomputableError("the model enters a TorchFunctionMode")
        _check_parts(block)
        values, shape = tree_flatten((args, kwargs))
        _check_plain(values, "takes")
        places = [i for i, value in enumerate(values) if isinstance(value, Tensor) and value.requires_grad]
        if not torch.is_grad_enabled() or not places:
            return forward(*args, **kwargs)
        inputs = [values[place] for place in places]
        before, versions = _random_state_for(block, inputs[0].device), [value._version for value in inputs]
        mode = _autocast(inputs[0].device.type)

        def run(given: Sequence[Tensor]) -> list[Tensor]:
            changed = values.copy()
            for place, value in zip(places, given, strict=True):
                changed[place] = value
            its_args, its_kwargs = tree_unflatten(changed, shape)
            with mode():
                return [value for value in tree_flatten(forward(*its_args, **its_kwargs))[0] if _is_real(value)]

        with torch.no_grad(), _failures():
            given, given_shape = tree_flatten(forward(*args, **kwargs))
        _check_plain(given, "gives out")
        if versions != [value._version for value in inputs]:
            raise NotRecomputableError("a block writes to its input")
        found = [i for i, value in enumerate(given) if _is_real(value)]
        ends = [_without_memory(given[i]) for i in found]
        for i, end in zip(found, ends, strict=True):
            given[i] = _Cut.apply(end, [given[i]])
        outputs = [given[i] for i in found]
        its = outputs, [value._version for value in outputs], ends, versions, before
        self._calls.append(_Call(block, run, inputs, *its))
        return tree_unflatten(given, given_shape)

    def gradients(self, values: list[Tensor], leaves: tuple[Tensor, ...]) -> list[OfLeaves]:
        """Returns each value's gradients with respect to the leaves; None where there is none. Empties `values`.

        Raises NotRecomputableError if a block gives out something else when it runs again.
        """
        ends = [end for call in self._calls for end in call.ends]
        found: list[dict[int, Tensor]] = [{} for _ in values]  # by the id of a leaf or an end
        for of_target in found:
            _add(of_target, [values.pop(0).sum()], None, (*leaves, *ends))
        while self._calls:
            call = self._calls.pop()
            ends = ends[: len(ends) - len(call.ends)]
            self._pass_through(call, found, (*leaves, *ends))
        return [tuple(of_target.get(id(leaf)) for leaf in leaves) for of_target in found]

    def _pass_through(self, call: _Call, found: list[dict[int, Tensor]], before: tuple[Tensor, ...]) -> None:
        """Passes the gradients of a call's outputs on to what its inputs were computed from."""
        arrived = [[of_target.pop(id(end), None) for end in call.ends] for of_target in found]
        inputs = [value.detach().requires_grad_() for value in call.inputs]
        now = random_state(inputs[0].device) if call.random is not None else None
        if call.random is not None:
            call.random.restore()
        try:
            if call.input_versions != [value._version for value in call.inputs]:
                raise NotRecomputableError("the input of a block was written to")
            with torch.enable_grad(), self.again(), _failures():
                outputs = call.run(inputs)
        finally:
            if now is not None:
                now.restore()
        _check_same(call, outputs)
        _check_no_other_way(call, inputs, outputs, before)
        for number, (of_target, grads) in enumerate(zip(found, arrived, strict=True)):
            pairs = [
                (out, grad) for out, grad in zip(outputs, grads, strict=True) if grad is not None and out.requires_grad
            ]
            if not pairs:
                continue
            total = _seeded(pairs)
            through = torch.autograd.grad(total, inputs, allow_unused=True, retain_graph=number < len(found) - 1)
            used = [(value, grad) for value, grad in zip(call.inputs, through, strict=True) if grad is not None]
            _add(of_target, [value for value, _ in used], [grad for _, grad in used], before)


@contextmanager
def _failures() -> Iterator[None]:
    """Raises NotRecomputableError for what a model raises in the block: without a graph, or when it runs again.

    Lean execution refuses by a NotImplementedError, and a warning is an error where the user has it so.
    """
    try:
        yield
    except (NotRecomputableError, NotImplementedError, Warning):
        raise
    except Exception as error:  # a model may raise anything
        if must_pass(error):
            raise
        raise NotRecomputableError(f"{type(error).__name__}: {error}") from error


def _add(into: dict[int, Tensor], values: list[Tensor], grads: list[Tensor] | None, leaves: tuple[Tensor, ...]) -> None:
    """Adds the gradients of values, or of their products with `grads`, to those of the leaves."""
    if not values:
        return
    total = values[0] if grads is None else _seeded(list(zip(values, grads, strict=True)))
    found = torch.autograd.grad(total, leaves, allow_unused=True, retain_graph=True)
    for leaf, grad in zip(leaves, found, strict=True):
        if grad is not None:
            into[id(leaf)] = into[id(leaf)] + grad if id(leaf) in into else grad


def _seeded(pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Returns a number from which the backward pass starts with the given gradients of tensors."""
    with torch.enable_grad():  # grad_outputs= would import 45 MB of symbolic shapes
        return torch.stack([_Seed.apply(value, grad) for value, grad in pairs]).sum()


class _Seed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, grad: Tensor) -> Tensor:
        """Returns a number that stands for the product of a tensor and its gradient."""
        ctx.grad = grad
        return value.new_zeros(())

    @staticmethod
    def backward(ctx: Any, one: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004
        """Returns the gradient."""
        return ctx.grad, None


class _Cut(torch.autograd.Function):
    """Gives a tensor the history of an `end` that has no memory of its own."""

    @staticmethod
    def forward(ctx: Any, end: Tensor, value: list[Tensor]) -> Tensor:  # noqa: ARG004
        """Returns the value, with the history of the end."""
        return value[0].detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004
        """Returns the gradient of the value as that of the end."""
        return grad, None


def _without_memory(like: Tensor) -> Tensor:
    """Returns a tensor of the same shape that takes no memory and requires a gradient."""
    return torch.zeros((), dtype=like.dtype, device=like.device).expand(like.shape).requires_grad_()


def _check_plain(values: list[Any], does: str) -> None:
    """Raises unless a block's arguments or results are tensors and plain values: gradients may pass other objects.

    A cache of keys and values, say, would keep those of the first run, which have no graph.
    """
    for value in values:
        if not isinstance(value, _PLAIN):
            raise NotRecomputableError(f"a block {does} a {type(value).__name__}")
        if isinstance(value, Tensor) and value.is_complex() and does == "gives out":
            raise NotRecomputableError("a block gives out complex numbers")


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _check_no_other_way(call: _Call, inputs: list[Tensor], outputs: list[Tensor], before: tuple[Tensor, ...]) -> None:
    """Raises if gradients may pass a block by: it read a tensor that was not an argument, or its modules keep one.

    Tensors that a block leaves in places outside of the model are not seen.
    """
    if _depends(outputs, before):
        raise NotRecomputableError("a block reads a tensor that it is not given")
    for part in call.block.modules():
        for name, value in list(vars(part).items()):  # other threads may run the module
            kept = [one for one in tree_flatten(value)[0] if isinstance(one, Tensor) and one.grad_fn is not None]
            if _depends(kept, (*inputs, *before)):
                raise NotRecomputableError(f"a block keeps a tensor, as {type(part).__name__}.{name}")


def _depends(values: Sequence[Tensor], leaves: Sequence[Tensor]) -> bool:
    """Returns whether the graph of some values reaches one of the leaves."""
    sought, seen = set(map(id, leaves)), set()
    nodes = [value.grad_fn for value in values]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if id(getattr(node, "variable", None)) in sought:
            return True
        nodes.extend(following for following, _ in node.next_functions)
    return False


def _n_modes() -> int:
    """Returns how many modes are active that may change what a block does."""
    return sum(type(mode).__name__ != "NoFastPath" for mode in _get_current_function_mode_stack())


def _check_parts(block: nn.Module) -> None:
    """Raises NotRecomputableError where a block may hand tensors to others while it runs: their graph would be lost."""
    for part in block.modules():
        if part is not block and (part._forward_hooks or part._forward_pre_hooks):
            raise NotRecomputableError(f"a block has a hook on a {type(part).__name__}")
        if own_forward(part) is not None and not hasattr(part, "_hf_hook"):  # accelerate's moves weights
            raise NotRecomputableError(f"the forward of a {type(part).__name__} was replaced")


def _check_same(call: _Call, outputs: list[Tensor]) -> None:
    if [value.shape for value in outputs] != [value.shape for value in call.outputs]:
        raise NotRecomputableError("a block gives out tensors of other shapes when it runs again")
    differ = []
    for again, value, version in zip(outputs, call.outputs, call.versions, strict=True):
        if value._version != version or value.is_meta or value.numel() == 0:  # written to since
            continue
        allowed = min(_SAME * torch.finfo(value.dtype).eps, _SAME_AT_MOST)
        for one, other in zip(_parts(again), _parts(value), strict=True):
            apart, size = (one - other).abs().max(), other.abs().max()
            differ.append(~(apart <= allowed * size) & torch.isfinite(size))
    if differ and bool(torch.stack([one.to(differ[0].device) for one in differ]).any()):
        raise NotRecomputableError("a block gives out other numbers when it runs again")


def _parts(value: Tensor) -> tuple[Tensor, ...]:
    """Returns a few parts of the rows, so that a comparison takes little memory."""
    value = value.detach()
    return value.tensor_split(min(len(value), _PARTS)) if value.dim() else (value,)


def _random_state_for(block: nn.Module, device: torch.device) -> RandomState | None:
    return random_state(device) if any(getattr(part, "training", False) for part in block.modules()) else None


def _autocast(device: str) -> Callable[[], AbstractContextManager[object]]:
    """Returns what puts the present state of autocast back."""
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    return lambda: torch.autocast(device, enabled=enabled, dtype=dtype)

"""Chunks as CUDA graphs, on the CPU: a recorder that evaluates what it was given stands in for the GPU."""

import _thread
import contextlib
import threading
import warnings

import pytest
import torch
from torch import nn

import igfast
from igfast import replay
from igfast.attr import _integration
from tests import models

X = torch.randn(2, 3, 8, 8, dtype=torch.float64)


class Recorder:
    """Evaluates at each replay; `is_stale` gives back what the first one gave."""

    def __init__(self, idle=True, questions=(), error=None, is_stale=False):
        self.idle, self.questions, self.error, self.is_stale = idle, questions, error, is_stale
        self.sizes = []

    def is_idle(self):
        return self.idle

    @contextlib.contextmanager
    def watched(self):
        questions = []
        yield questions
        questions += self.questions

    def record(self, evaluate, rows):
        if self.error is not None:
            raise self.error
        self.sizes.append(len(rows[0]))
        held = tuple(of.clone() for of in rows)
        recorded = evaluate(*held)

        def play(*others):
            for of, other in zip(held, others, strict=True):
                of.copy_(other)
            return recorded if self.is_stale else evaluate(*held)

        return play


@pytest.fixture
def recording(monkeypatch):
    def use(**options):
        recorder = Recorder(**options)
        monkeypatch.setattr(_integration, "recorder_for", lambda device: recorder)
        return recorder

    return use


def attribute(model, cuda_graph="auto", size=2, n_steps=20, **options):
    explainer = igfast.IntegratedGradients(model, cuda_graph=cuda_graph)
    return explainer.attribute(
        X, target=1, n_steps=n_steps, internal_batch_size=size, return_convergence_delta=True, return_report=True,
        **options,
    )  # fmt: skip


def assert_same(got, wanted):
    torch.testing.assert_close(got[0], wanted[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got[1], wanted[1], rtol=1e-9, atol=1e-9)


def chunks_without_trials(monkeypatch):
    """Chunks that the planner does not time, so that any may be recorded."""
    monkeypatch.setattr("igfast.planner.ChunkPlan.is_timing", lambda *_: False)


@pytest.mark.parametrize(("choice", "replayed"), [("auto", 16), (True, 17), (False, 0)])
def test_replayed_chunks_give_the_same(monkeypatch, recording, choice, replayed):
    chunks_without_trials(monkeypatch)
    model, recorder = models.convnet(), recording()
    wanted = attribute(model, cuda_graph=False)
    got = attribute(model, cuda_graph=choice)
    assert_same(got, wanted)
    assert got[2].cuda_graph == (f"{replayed} chunks replayed" if replayed else "")
    assert ("CUDA graph" in str(got[2])) == bool(replayed)
    assert recorder.sizes == [2] * bool(replayed)
    assert got[2].n_evaluations == 40


@pytest.mark.parametrize("method", ["riemann_trapezoid", "gausslegendre"])
@pytest.mark.parametrize("size", [1, 3, 4, 7])
def test_chunks_of_two_sizes_and_the_ends_of_the_path(monkeypatch, recording, size, method):
    chunks_without_trials(monkeypatch)
    model, recorder = models.convnet(), recording()
    wanted = attribute(model, False, size, 33, method=method)
    got = attribute(model, True, size, 33, method=method)
    assert_same(got, wanted)
    assert recorder.sizes
    assert sum(got[2].chunks.values()) > int(got[2].cuda_graph.split()[0]) > 0


def test_additional_arguments_and_targets_follow_the_rows(monkeypatch, recording):
    chunks_without_trials(monkeypatch)
    recording()
    weight = torch.randn(3 * 64, 4, dtype=torch.float64)

    def forward(x, scale):
        return (torch.sigmoid(x) * scale[:, None, None, None]).flatten(1) @ weight

    options = {"additional_forward_args": torch.tensor([0.5, 2.0], dtype=torch.float64), "target": [3, 1]}
    wanted, got = (
        igfast.IntegratedGradients(forward, cuda_graph=choice).attribute(X, internal_batch_size=3, **options)
        for choice in (False, True)
    )
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", [{"idle": False}, {"questions": ["model.py:3"]}])
def test_auto_goes_without_where_it_does_not_pay_or_cannot_be(monkeypatch, recording, options):
    chunks_without_trials(monkeypatch)
    model, recorder = models.convnet(), recording(**options)
    got = attribute(model)
    assert_same(got, attribute(model, False))
    assert recorder.sizes == []
    waits = "off: the model waits for the GPU (model.py:3)"
    assert got[2].cuda_graph == (waits if "questions" in options else "")


def test_auto_needs_many_chunks(monkeypatch, recording):
    chunks_without_trials(monkeypatch)
    recorder = recording()
    attribute(models.convnet(), n_steps=10)
    assert recorder.sizes == []
    attribute(models.convnet(), n_steps=11)
    assert recorder.sizes == [2]


def test_nothing_is_recorded_while_chunks_are_timed(monkeypatch, recording):
    recorder = recording()
    monkeypatch.setattr("igfast.planner.ChunkPlan.is_timing", lambda *_: True)
    attribute(models.convnet(), cuda_graph=True)
    assert recorder.sizes == []


@pytest.mark.parametrize(
    ("options", "because"),
    [
        ({"is_stale": True}, "the graph gives other gradients than the model"),
        ({"error": RuntimeError("not permitted\nwhile capturing")}, "the model cannot be recorded"),
        ({"error": torch.OutOfMemoryError("CUDA out of memory")}, "out of memory while recording"),
        ({"questions": ["model.py:3"]}, "the model waits for the GPU"),
    ],
)
def test_what_cannot_be_recorded_runs_without_or_raises(monkeypatch, recording, options, because):
    chunks_without_trials(monkeypatch)
    recording(**options)
    model = models.convnet()
    got = attribute(model)
    assert_same(got, attribute(model, False))
    assert got[2].cuda_graph.startswith(f"off: {because}")
    assert "\n" not in got[2].cuda_graph
    with pytest.raises(igfast.GraphError, match=f"cuda_graph=True, but {because}"):
        attribute(model, cuda_graph=True)


def with_hook(model):
    model[0].register_forward_hook(lambda *_: None)
    return model


def on_two_devices(model):
    model.register_parameter("other", nn.Parameter(torch.empty(1, device="meta")))
    return model


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method. is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    ("change", "because"),
    [
        (with_hook, "Conv2d has hooks, which a replay does not call"),
        (on_two_devices, "Sequential is on another device than the inputs, or on several"),
        (nn.DataParallel, "DataParallel is on another device than the inputs, or on several"),
        (torch.compile, "is compiled"),
    ],
)
def test_models_that_are_not_recorded(monkeypatch, recording, change, because):
    chunks_without_trials(monkeypatch)
    recorder, model = recording(), change(models.convnet())
    with pytest.raises(igfast.GraphError, match=because):
        attribute(model, cuda_graph=True)
    if change is not torch.compile:
        assert attribute(model)[2].cuda_graph.startswith("off: ")
    assert recorder.sizes == []


def test_hooks_of_layer_attributions_are_recorded(monkeypatch, recording):
    chunks_without_trials(monkeypatch)
    recorder, model = recording(), models.convnet()
    for explainer, options in (
        (igfast.LayerIntegratedGradients, {"target": 1}),
        (igfast.NeuronIntegratedGradients, {"neuron_selector": (0, 1, 1)}),
    ):
        wanted, got = (
            explainer(model, model[0], cuda_graph=choice).attribute(X, internal_batch_size=2, **options)
            for choice in (False, True)
        )
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    assert recorder.sizes == [2, 2]


def test_memory_that_runs_out_is_saved_first(monkeypatch, recording):
    """Once a call had to save memory at one row, nothing is recorded."""
    chunks_without_trials(monkeypatch)
    recorder = recording()
    monkeypatch.setattr("igfast.planner.ChunkPlan.savings", 1, raising=False)
    plan_of = _integration.ChunkPlan.fixed

    def fixed(*args):
        plan = plan_of(*args)
        plan.savings = 1
        return plan

    monkeypatch.setattr(_integration.ChunkPlan, "fixed", staticmethod(fixed))
    attribute(models.convnet(), cuda_graph=True)
    assert recorder.sizes == []


def test_choices():
    with pytest.raises(igfast.ArgumentError, match='cuda_graph must be "auto", True or False; got 3'):
        igfast.IntegratedGradients(models.convnet(), cuda_graph=3)
    with pytest.raises(igfast.ArgumentError, match="cuda_graph=True needs inputs on a CUDA device; got inputs on cpu"):
        attribute(models.convnet(), cuda_graph=True)
    assert attribute(models.convnet())[2].cuda_graph == ""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64])
def test_results_agree_up_to_half_of_the_digits(dtype):
    one = torch.randn(100, dtype=dtype)
    eps = torch.finfo(dtype).eps
    for factor, agrees in ((1.0, True), (1 + eps**0.5 / 4, True), (1 + 4 * eps**0.5, False)):
        assert replay._agree(((one,), None), ((one * factor,), None)) is agrees
    assert not replay._agree(((one,), one.abs()), ((one,), one.abs() + 1))
    other = one.clone()
    one[3], other[3] = torch.nan, torch.inf
    assert replay._agree(((one,), None), ((other,), None))
    one[4] = torch.nan
    assert not replay._agree(((one,), None), ((other,), None))
    small, large = torch.tensor([1e-6, 1.0]).to(dtype), torch.tensor([2e-6, 1.0]).to(dtype)
    assert not replay._agree(((small,), None), ((large,), None))


def test_values_of_fewer_digits_than_gradients_count():
    grads, values = torch.randn(3, 4), torch.randn(3)
    assert not replay._agree(((grads,), values), ((grads * 1.01,), values))
    assert replay._agree(((grads,), values.bfloat16()), ((grads * 1.01,), values.bfloat16()))


def test_other_warnings_pass_while_questions_are_noted(monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    recorder = replay.CudaRecorder(torch.device("cuda"))

    def warn_and_say_so(done):
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        done.set()

    def watch():
        with recorder.watched() as questions:
            warnings.warn("called a synchronizing CUDA operation (Triggered internally)", stacklevel=1)
            elsewhere = threading.Thread(target=warnings.warn, args=["called a synchronizing CUDA operation"])
            elsewhere.start()
            elsewhere.join()
            done = threading.Event()  # a thread that Python did not start, as those of autograd
            _thread.start_new_thread(warn_and_say_so, (done,))
            done.wait()
            warnings.warn("Synchronization debug mode is a prototype feature", stacklevel=1)
            warnings.warn("mine", stacklevel=1)
        return questions

    with pytest.warns(UserWarning, match="^mine$") as seen:
        questions = watch()
    assert len(seen) == 1
    assert len(questions) == 2
    assert all(question.startswith(__file__) for question in questions)
    with pytest.raises(KeyError), recorder.watched():
        raise KeyError
    assert modes == ["warn", 0, "warn", 0]


def test_memory_that_is_too_small_for_a_graph_beside_a_chunk(monkeypatch, recording):
    chunks_without_trials(monkeypatch)
    recorder, model, called = recording(), models.convnet(), []

    def forward(x):
        called.extend(recorder.sizes)
        if len(called) == 2:  # to be recorded, to be compared
            raise torch.OutOfMemoryError("CUDA out of memory")
        return model(x)

    got = attribute(forward)
    assert_same(got, attribute(model, False))
    assert len(called) > 2
    assert got[2].chunks == {2: 20}
    assert got[2].cuda_graph == "off: there is no memory for a graph beside a chunk"


def test_one_graph_at_a_time(monkeypatch, recording):
    """Whoever comes while there is one evaluates its chunks, and it is gone with its call, however that ends."""
    chunks_without_trials(monkeypatch)
    recorder, model = recording(), models.convnet()
    wanted = attribute(model, cuda_graph=False)
    threads, others = [], []

    def attributes(x):
        if recorder.sizes and not threads:  # while the outer call has a graph
            threads.append(threading.Thread(target=lambda: others.append(attribute(model, cuda_graph=True))))
            threads[0].start()
            threads[0].join()
        return model(x)

    outer = attribute(attributes, cuda_graph=True)
    later = attribute(model, cuda_graph=True)
    for got, says in (
        (outer, "17 chunks replayed"),
        (others[0], "0 chunks replayed; off: another call has a graph"),
        (later, "17 chunks replayed"),
    ):
        assert_same(got, wanted)
        assert got[2].cuda_graph == says

    calls = []

    def fails(x):
        calls.append(len(recorder.sizes))
        if calls.count(3) >= 5:  # recorded and replayed
            raise ValueError("enough")
        return model(x)

    with pytest.raises(ValueError, match="enough"):
        attribute(fails, cuda_graph=True)
    assert not replay._one_graph.locked()

"""igfast in Captum's place: in a process, under a script, and back again."""

import pickle
import subprocess
import sys
import types
from pathlib import Path

import captum.attr
import pytest
import torch
from captum.attr import IntegratedGradients as ImportedHere

import igfast
from tests import models

ROOT = Path(__file__).parent.parent
SCRIPT = "tests/scripts/imports.py"
CAPTUMS = igfast.IntegratedGradients.__mro__[1]
METHODS = {"ig": captum.attr.IntegratedGradients}
TUPLE = (captum.attr.IntegratedGradients,)


@pytest.fixture(autouse=True)
def unpatched():
    yield
    igfast.unpatch_captum()
    assert captum.attr.IntegratedGradients is CAPTUMS


def test_names_in_captum_and_here():
    with igfast.patch_captum() as patch:
        assert captum.attr.IntegratedGradients is igfast.IntegratedGradients
        assert captum.attr.LayerIntegratedGradients is igfast.LayerIntegratedGradients
        assert captum.attr.NeuronIntegratedGradients is igfast.NeuronIntegratedGradients
        assert sys.modules["captum.attr._core.llm_attr"].LayerIntegratedGradients is igfast.LayerIntegratedGradients
        assert ImportedHere is igfast.IntegratedGradients
        assert METHODS["ig"] is igfast.IntegratedGradients
        assert f"{__name__}.ImportedHere" in patch.replaced
        assert any(left.startswith(f"{__name__}.TUPLE") for left in patch.not_replaced)
    assert captum.attr.IntegratedGradients is ImportedHere is METHODS["ig"] is CAPTUMS


def test_idempotent_and_nested():
    outer = igfast.patch_captum()
    with igfast.patch_captum() as inner:
        assert not [name for name in inner.replaced if "captum" in name]
    assert captum.attr.IntegratedGradients is igfast.IntegratedGradients
    outer.undo()
    outer.undo()
    assert captum.attr.IntegratedGradients is CAPTUMS


def test_undone_after_an_exception():
    with pytest.raises(KeyError), igfast.patch_captum():
        raise KeyError
    assert captum.attr.IntegratedGradients is CAPTUMS


def test_modules_of_captum_imported_meanwhile_get_captums_class_back():
    module = types.ModuleType("captum.imported_meanwhile")
    with igfast.patch_captum():
        module.IntegratedGradients = captum.attr.IntegratedGradients
        sys.modules[module.__name__] = module
    try:
        assert module.IntegratedGradients is CAPTUMS
    finally:
        del sys.modules[module.__name__]


def test_calls_that_are_left_to_captum_reach_captum_under_a_patch():
    network, x = models.mlp(), torch.randn(2, 3, dtype=torch.float64)
    layer = network[0]

    class Derived(igfast.IntegratedGradients):
        def _attribute(self, *args, **kwargs):
            return super()._attribute(*args, **kwargs)

    wanted = CAPTUMS(network).attribute(x, target=0)
    before = captum.attr.NeuronIntegratedGradients(network, layer)
    of_neuron = before.attribute(x, 0)
    with igfast.patch_captum():
        assert torch.equal(Derived(network).attribute(x, target=0), wanted)
        torch.testing.assert_close(before.attribute(x, 0), of_neuron)
        explainer = igfast.LayerIntegratedGradients(network, layer)
        assert explainer.attribute(x, target=0, grad_kwargs={"create_graph": True}).shape == (2, layer.out_features)


def test_a_second_undo_does_nothing():
    patch = igfast.patch_captum()
    patch.undo()
    module = types.ModuleType("user_module")
    module.Ours = igfast.IntegratedGradients
    sys.modules[module.__name__] = module
    try:
        patch.undo()
        assert module.Ours is igfast.IntegratedGradients
    finally:
        del sys.modules[module.__name__]


def test_a_name_that_was_igfasts_before_stays_so_and_one_from_captum_does_not():
    module = types.ModuleType("user_module")
    module.Ours = igfast.IntegratedGradients
    sys.modules[module.__name__] = module
    try:
        with igfast.patch_captum():
            exec("from captum.attr import IntegratedGradients as Theirs", vars(module))
            assert module.Theirs is igfast.IntegratedGradients
        assert module.Theirs is CAPTUMS
        assert module.Ours is igfast.IntegratedGradients
    finally:
        del sys.modules[module.__name__]


def test_a_name_that_was_bound_to_something_else_is_left_alone():
    module = types.ModuleType("user_module")
    module.Explainer = CAPTUMS
    sys.modules[module.__name__] = module
    try:
        with igfast.patch_captum():
            assert module.Explainer is igfast.IntegratedGradients
            module.Explainer = int
        assert module.Explainer is int
    finally:
        del sys.modules[module.__name__]


def test_derived_classes_are_reported():
    class Mine(CAPTUMS):
        pass

    with igfast.patch_captum() as patch:
        assert any("Mine: derives from Captum's class" in left for left in patch.not_replaced)
    del Mine


def test_instances_pickle_before_during_and_after():
    network = models.mlp()
    ours, theirs = igfast.IntegratedGradients(network), CAPTUMS(network)
    x = torch.randn(2, 3, dtype=torch.float64)
    with igfast.patch_captum():
        copy = pickle.loads(pickle.dumps(captum.attr.IntegratedGradients(network)))
        assert torch.equal(copy.attribute(x, target=0), ours.attribute(x, target=0))
    assert type(pickle.loads(pickle.dumps(theirs))) is CAPTUMS


def run(*command):
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=ROOT, check=False)


def test_an_unmodified_script_runs_on_igfast_alone():
    plain = run(SCRIPT, "a", "--b=c")
    # What an attribution of Captum's own would go through is replaced by an error.
    trap = (
        "import sys, captum.attr._core.integrated_gradients as ig\n"
        "import captum.attr._core.layer.layer_integrated_gradients as l\n"
        "import captum.attr._core.neuron.neuron_integrated_gradients as n\n"
        "def trap(*a, **k): raise SystemExit('Captum ran')\n"
        "ig.IntegratedGradients._attribute = ig.IntegratedGradients.attribute = trap\n"
        "l.LayerIntegratedGradients.attribute = n.NeuronIntegratedGradients.attribute = trap\n"
        "from igfast.cli import main\n"
        f"sys.exit(main(['run', '{SCRIPT}', 'a', '--b=c']))"
    )
    swapped = run("-c", trap)
    assert swapped.returncode == 0, swapped.stderr
    assert plain.returncode == 0, plain.stderr
    assert swapped.stdout == plain.stdout  # the same arguments and the same numbers
    lines = [line.split() for line in swapped.stderr.splitlines() if line.startswith("  ")]
    counts = {line[0]: line[1] for line in lines if len(line) == 2}
    assert counts == {"IntegratedGradients": "6", "LayerIntegratedGradients": "2", "NeuronIntegratedGradients": "1"}
    assert "captum.attr.IntegratedGradients" in swapped.stderr


def test_a_script_that_fails_or_exits_is_reported_too(tmp_path):
    script = tmp_path / "fails.py"
    script.write_text("from captum.attr import IntegratedGradients\nraise SystemExit(3)")
    finished = run("-m", "igfast", "run", str(script))
    assert finished.returncode == 3
    assert "calls of attribute" in finished.stderr


def test_a_module_by_its_name():
    finished = run("-m", "igfast", "run", "-m", "tests.scripts.imports", "x")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith("['x']")
    assert "IntegratedGradients               6" in finished.stderr

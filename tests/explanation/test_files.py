"""Explanations survive files and JSON bit for bit; damaged ones are refused by name."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import igfast
from igfast.explanation.files import written

TENSORS = [
    torch.tensor([[0.1, -0.0, float("nan"), float("inf")]]),
    torch.tensor([[1e-310, 0.1]], dtype=torch.float64),
    torch.tensor([[0.1, 3.0]], dtype=torch.bfloat16),
    torch.tensor([[0.1, 3.0]], dtype=torch.half),
    torch.tensor([[1 + 2j, 0.1j]]),
    torch.tensor([[1 + 2j]], dtype=torch.complex128),
    torch.zeros(0, 3),
    torch.arange(6).reshape(2, 3).T.float(),
    (torch.ones(1, 2), torch.ones(1, 3).double()),
    [torch.ones(1, 2), (torch.ones(1), torch.zeros(1))],
]


def explanation(**changes):
    fields = {
        "attributions": torch.ones(1, 2),
        "inputs": torch.ones(1, 2),
        "baselines": 0,
        "target": 1,
        "predictions": torch.tensor([0.5]),
        "baseline_predictions": torch.tensor([0.1]),
        "deltas": torch.tensor([1e-8]),
        "report": None,
        "meta": {"method": "m", "rule": "r", "n_steps": 5, "model": "M", "layer": "", "versions": {"a": "1"}},
    }
    return igfast.Explanation(**{**fields, **changes})


def through_file(value, tmp_path):
    value.save(tmp_path / "e.safetensors")
    return igfast.Explanation.load(tmp_path / "e.safetensors")


def through_json(value, _):
    return igfast.Explanation.from_json(value.to_json())


def same(a, b):
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        return (
            a.contiguous().numpy(force=True).tobytes() == b.contiguous().numpy(force=True).tobytes()
            if (a.dtype != torch.bfloat16)
            else torch.equal(a, b)
        )
    assert type(a) is type(b)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("trip", [through_file, through_json])
@pytest.mark.parametrize("tensors", TENSORS, ids=range(len(TENSORS)))
def test_tensors_survive_bit_for_bit(trip, tensors, tmp_path):
    assert same(trip(explanation(attributions=tensors, inputs=tensors), tmp_path).attributions, tensors)


@pytest.mark.parametrize("length", range(0, 32, 4))
def test_complex_numbers_wherever_they_lie_in_a_file(length, tmp_path):
    tensor = torch.tensor([[1 + 2j] * 5], dtype=torch.complex128)
    meta = explanation().meta | {"model": "M" * length}
    assert same(through_file(explanation(attributions=tensor, meta=meta), tmp_path).attributions, tensor)


@pytest.mark.parametrize("trip", [through_file, through_json])
@pytest.mark.parametrize(
    "target",
    [None, 3, (1, slice(0, 2, None)), torch.tensor([1, 2]), [1, 2], [(1, 2), (0, 1)], "selector", 0.1, float("inf")],
    ids=str,
)
def test_everything_else_survives(trip, target, tmp_path):
    names = (("a", "b"), ("<c>",))
    back = trip(explanation(target=target, feature_names=names, baselines=(0, torch.zeros(1, 2), 0.5)), tmp_path)
    assert same(back.target, target)
    assert back.feature_names == names
    assert same(back.baselines, (0, torch.zeros(1, 2), 0.5))


@pytest.mark.parametrize("trip", [through_file, through_json])
def test_a_real_one_survives(trip, tmp_path):
    before = igfast.IntegratedGradients(nn.Linear(3, 2)).explain(torch.rand(4, 3), target=[0, 1, 0, 1], n_steps=5)
    after = trip(before, tmp_path)
    for name, value in vars(before).items():
        assert same(getattr(after, name), value), name
    assert str(after.report) == str(before.report)


def test_a_file_appears_only_when_it_is_whole(tmp_path, monkeypatch):
    import safetensors.torch

    def fails(tensors, path, **options):
        path.write_bytes(b"half")
        raise RuntimeError("disk full")

    before = explanation()
    before.save(tmp_path / "e")
    monkeypatch.setattr(safetensors.torch, "save_file", fails)
    with pytest.raises(RuntimeError, match="disk full"):
        explanation(target=7).save(tmp_path / "e")
    assert igfast.Explanation.load(tmp_path / "e").target == 1
    assert os.listdir(tmp_path) == ["e"]  # noqa: PTH208


@pytest.mark.parametrize("length", [0, 7, 100, -1])
def test_a_damaged_file_is_refused_by_name(length, tmp_path):
    path = tmp_path / "cut.safetensors"
    explanation().save(path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(igfast.ExplanationFileError, match=r"cut\.safetensors"):
        igfast.Explanation.load(path)


def test_changed_numbers_are_noticed(tmp_path):
    path = tmp_path / "changed.safetensors"
    explanation().save(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(igfast.ExplanationFileError, match="the numbers of a tensor have changed"):
        igfast.Explanation.load(path)


@pytest.mark.parametrize("trip", [through_file, through_json])
def test_numbers_of_numpy_and_conjugates(trip, tmp_path):
    import numpy as np

    value = torch.tensor([[1 + 2j]]).conj()
    back = trip(explanation(target=[np.int64(3), np.float32(0.5)], attributions=value), tmp_path)
    assert back.target == [3, 0.5]
    assert torch.equal(back.attributions, value)


def test_other_files_are_refused_by_name(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(igfast.ExplanationFileError, match=r"weights\.safetensors does not hold an igfast\.Explanation"):
        igfast.Explanation.load(tmp_path / "weights.safetensors")
    with pytest.raises(FileNotFoundError, match="missing"):
        igfast.Explanation.load(tmp_path / "missing")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: tree.update(version=2), "version 2 of the format.*a newer igfast wrote it"),
        (lambda tree: tree.update(format="other"), "does not hold an igfast.Explanation"),
        (lambda tree: tree["fields"].pop("deltas"), "damaged|deltas"),
        (lambda tree: tree["fields"]["deltas"]["tensor"].update(data="AAAA"), "damaged"),
        (lambda tree: tree["fields"]["deltas"]["tensor"].update(dtype="manual_seed"), "damaged"),
        (lambda tree: tree["fields"].update(target={"what": 1}), "damaged"),
    ],
)
def test_json_of_something_else_is_refused(change, message):
    tree = json.loads(explanation().to_json())
    change(tree)
    with pytest.raises(igfast.ExplanationFileError, match=message):
        igfast.Explanation.from_json(json.dumps(tree))


def test_text_that_is_no_json_is_refused():
    with pytest.raises(igfast.ExplanationFileError, match="the text is damaged"):
        igfast.Explanation.from_json("{")


def test_what_has_no_json_form_is_refused():
    with pytest.raises(TypeError, match="cannot be written with a object in it"):
        explanation(target=object()).to_json()


@pytest.mark.parametrize("ending", ["json", "safetensors"])
def test_files_of_the_first_version_are_read(ending):
    """The files were written once, and are never written again: what users have kept must be read."""
    path = Path(__file__).parent / "written_by_version_1" / f"explanation.{ending}"
    read = igfast.Explanation.from_json(path.read_text()) if ending == "json" else igfast.Explanation.load(path)
    assert read.inputs.tolist() == [[1, 2, 3]]
    assert read.target == [(1,)]
    assert read.feature_names == (("a", "b", "c"),)
    assert read.attributions.shape == (1, 3, 2)
    total = float(read.attributions.sum() - (read.predictions - read.baseline_predictions))
    assert total == pytest.approx(float(read.deltas), abs=1e-6)
    assert read.report.n_rows == 3
    assert read.meta["n_steps"] == 3


def test_what_is_written_to_a_link_goes_where_it_leads(tmp_path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "there" / "file")
    for content in ("first", "second"):
        with written(link) as temporary:
            temporary.write_text(content)
        assert link.is_symlink()
        assert (tmp_path / "there" / "file").read_text() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "there"]


def test_a_device_stays_one(tmp_path):
    """Renaming a file to /dev/null would leave a file in its place."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE, text=True)
    with written(pipe) as temporary:
        temporary.write_text("all of it")
    assert reader.communicate()[0] == "all of it"
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(IsADirectoryError, match="is a folder, not a file"), written(tmp_path):
        pass


def test_a_file_that_a_shell_has_put_at_the_end_of_a_command_is_added_to(tmp_path):
    """As `>> all.csv` does with --out /dev/stdout."""
    code = (
        "from pathlib import Path; from igfast.explanation.files import written\n"
        "with written(Path('/dev/stdout')) as temporary: temporary.write_text('new\\n')"
    )
    (tmp_path / "all.csv").write_text("old\n")
    with (tmp_path / "all.csv").open("a") as file:
        subprocess.run([sys.executable, "-c", code], stdout=file, check=True)
    assert (tmp_path / "all.csv").read_text() == "old\nnew\n"

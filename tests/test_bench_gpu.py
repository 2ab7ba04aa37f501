"""What of the GPU benchmarks can go wrong without a GPU."""

import pytest
import torch

from benchmarks import bench_gpu, gpu_cases, harness
from igfast.ops._load import kernels_loaded

assert kernels_loaded()

CPU = torch.device("cpu")


@pytest.mark.parametrize("limit", [0, 31, 32, 1000, 1024, 5000, 5024, 100000])
def test_the_largest_side_that_fits(limit):
    asked = []
    assert bench_gpu.largest_side(lambda side: asked.append(side) or side <= limit, 1024, 32) == limit // 32 * 32
    assert len(asked) == len(set(asked)) < 25


def test_operators_are_measured():
    records = bench_gpu.measure_operators(CPU, 1, torch.float32)
    assert [record["operator"] for record in records] == [
        "interpolate", "accumulate_", "scale_", "gate", "gate gradient", "max pool", "max pool gradient", "batch norm",
        "batch norm gradient", "PyTorch's batch norm",
    ]  # fmt: skip
    assert all(record["bandwidth_share"] > 0 for record in records)


def test_networks_are_measured():
    workload = gpu_cases.Workload("MLP of 6 layers", 1, torch.float32)
    records = bench_gpu.measure_network(CPU, workload)
    assert [record["provider"] for record in records][:3] == ["igfast", "igfast, lean=False", "captum"]
    assert all(record["time_ratio"] > 0 for record in records)
    assert all(record["error"] < 1e-5 for record in records if "error" in record)
    choices = bench_gpu.measure_choices(CPU, workload)
    case = "MLP of 6 layers, 1 input, 50 steps, float32"
    assert {record["case"] for record in records} == {case}
    assert {record["case"] for record in choices} == {f"{case}, choices"}  # or one would replace the other


def test_records_stand_beside_those_of_other_cases(tmp_path):
    def sides():
        return [(record["case"], record["side"]) for record in harness.read("gpu", tmp_path)]

    harness.update("gpu", [{"case": "a", "side": 1}, {"case": "b", "side": 2}], tmp_path)
    harness.update("gpu", [{"case": "b", "side": 3}, {"case": "b", "side": 4}], tmp_path)
    assert sides() == [("a", 1), ("b", 3), ("b", 4)]


def test_a_copy_without_history_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "RESULTS", tmp_path / "benchmarks" / "results")
    assert harness.origin()["commit"] == "unknown"


def test_an_image_is_too_large_whatever_it_raises(monkeypatch):
    class Refuses:
        def __init__(self, network):
            pass

        def attribute(self, image, **options):
            if image.shape[-1] > 64:
                raise RuntimeError("an index is too long")

    monkeypatch.setattr(bench_gpu.igfast, "IntegratedGradients", Refuses)
    (record,) = bench_gpu.measure_largest_image(CPU, "igfast", first=32, unit=32)
    assert record["side"] == 64
    assert record["larger_ones"] == [
        "128: RuntimeError: an index is too long",
        "96: RuntimeError: an index is too long",
    ]

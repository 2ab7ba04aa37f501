"""What of the GPU benchmarks can go wrong without a GPU."""

import pytest
import torch

from benchmarks import bench_gpu

CPU = torch.device("cpu")


@pytest.mark.parametrize("limit", [0, 31, 32, 1000, 1024, 5000, 5024, 100000])
def test_the_largest_side_that_fits(limit):
    asked = []
    assert bench_gpu.largest_side(lambda side: asked.append(side) or side <= limit, 1024) == limit // 32 * 32
    assert len(asked) == len(set(asked)) < 25


def test_operators_are_measured():
    records = bench_gpu.measure_operators(CPU, 1, torch.float32)
    assert [record["operator"] for record in records] == [
        "interpolate", "accumulate_", "scale_", "gate", "gate gradient"
    ]  # fmt: skip
    assert all(record["bandwidth_share"] > 0 for record in records)


def test_networks_are_measured():
    records = bench_gpu.measure_network(CPU, "MLP of 6 layers", 10)
    assert [record["provider"] for record in records][:2] == ["igfast", "captum"]
    assert all(record["time_ratio"] > 0 and record["rounds"] >= 1 for record in records)

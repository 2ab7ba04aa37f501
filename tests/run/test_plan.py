"""Chunk sizes: pure functions of numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igfast.run.plan import CPU, PARALLEL, ChunkPlan

IMAGE = 3 * 224 * 224 * 4  # bytes


def chunks(plan, n_rows):
    sizes = []
    while sum(sizes) < n_rows:
        sizes.append(plan.next_rows(n_rows - sum(sizes)))
    return sizes


def test_the_first_chunk_has_so_many_bytes_of_input():
    assert ChunkPlan(batch=1, n_rows=50, rows=1, row_bytes=IMAGE).growing(CPU).rows == 4
    assert ChunkPlan(batch=1, n_rows=50, rows=1, row_bytes=IMAGE).growing(PARALLEL).rows == 50
    assert ChunkPlan(batch=16, n_rows=800, rows=1, row_bytes=IMAGE).growing(PARALLEL).rows == 140
    assert ChunkPlan(batch=1, n_rows=50, rows=1, row_bytes=0).growing(CPU).rows == 50
    assert ChunkPlan(batch=1, n_rows=50, rows=1, row_bytes=2**30).growing(CPU).rows == 1


def test_later_chunks_have_what_is_cheap_and_within_the_limits():
    plan = ChunkPlan(batch=1, n_rows=1000, rows=1, row_bytes=IMAGE).growing(CPU)
    assert plan.fitted(2**20, None).rows == CPU.largest // IMAGE
    assert plan.fitted(2**25, None).rows == 6  # 192 MiB
    assert plan.fitted(2**30, None).rows == 4  # no smaller than the first one
    assert plan.fitted(2**20, 3 * 2**20).rows == 3
    assert plan.fitted(2**20, 1).rows == 1
    heavy = ChunkPlan(batch=1, n_rows=1000, rows=1, row_bytes=IMAGE, weight_bytes=2**28).growing(CPU)
    assert heavy.fitted(2**26, None).rows == 8  # twice its weights
    assert (
        ChunkPlan(batch=1, n_rows=35, rows=1, row_bytes=IMAGE).growing(CPU).fitted(2**20, None).rows == 7
    )  # a fifth of all rows


def test_a_fixed_size_and_one_that_was_halved_do_not_grow():
    fixed = ChunkPlan(batch=1, n_rows=1000, rows=4, row_bytes=IMAGE)
    assert fixed.fitted(1, None) is fixed
    halved = ChunkPlan(batch=1, n_rows=1000, rows=1, row_bytes=IMAGE).growing(CPU).halved(4)
    assert halved.rows == 2
    assert halved.fitted(1, None) is halved
    assert halved.halved(1) is None


@pytest.mark.parametrize(
    ("batch", "rows", "n_rows", "wanted"),
    [
        (1, 10, 50, [10] * 5),
        (1, 10, 51, [9, 9, 9, 8, 8, 8]),
        (4, 10, 40, [8] * 5),
        (4, 3, 12, [3, 3, 3, 3]),
        (4, 3, 16, [3, 3, 3, 3, 2, 2]),
        (4, 100, 40, [40]),
    ],
)
def test_chunks_are_of_whole_steps_and_alike(batch, rows, n_rows, wanted):
    assert chunks(ChunkPlan(batch=batch, n_rows=n_rows, rows=rows, row_bytes=1), n_rows) == wanted


@given(st.integers(1, 9), st.integers(1, 60), st.integers(1, 200))
def test_all_rows_are_covered_by_no_larger_chunks(batch, n_steps, rows):
    plan = ChunkPlan(batch=batch, n_rows=batch * n_steps, rows=rows, row_bytes=1)
    sizes = chunks(plan, batch * n_steps)
    assert sum(sizes) == batch * n_steps
    assert max(sizes) <= rows
    if rows >= batch:
        assert all(size % batch == 0 for size in sizes)


def test_a_step_that_was_begun_in_parts_is_finished_first():
    plan = ChunkPlan(batch=4, n_rows=40, rows=8, row_bytes=1)
    assert plan.next_rows(39) == 3
    assert plan.next_rows(36) == 8

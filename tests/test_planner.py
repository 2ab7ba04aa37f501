from collections import Counter

import pytest

from igfast.planner import FIRST_CHUNK_BYTES, ChunkPlan

MIB = 2**20


def run(plan, n_rows, seconds_per_row, limit=1000):
    """The chunks of a whole call on a machine where each row of a chunk costs `seconds_per_row(n, channels_last)`."""
    chunks, left = [], n_rows
    while left and len(chunks) < limit:
        size = plan.next_rows(left)
        chunks.append((size, plan.channels_last))
        plan.record(size, size * seconds_per_row(size, plan.channels_last))
        left -= size
    assert left == 0
    return chunks


def test_small_inputs_go_in_one_chunk():
    assert run(ChunkPlan.growing(1, 50, row_bytes=400), 50, lambda n, cl: 1.0) == [(50, False)]


def test_first_chunk_is_about_two_mebibytes():
    assert ChunkPlan.growing(1, 10**6, row_bytes=1000).next_rows(10**6) == -(-FIRST_CHUNK_BYTES // 1000)
    assert FIRST_CHUNK_BYTES == 2 * MIB


def test_grows_while_the_time_per_row_improves():
    sizes = [n for n, _ in run(ChunkPlan.growing(1, 1200, MIB // 2), 1200, lambda n, cl: 1 / n)]
    assert sizes[:5] == [4, 4, 8, 8, 8]  # each clearly faster at its first chunk
    assert max(sizes) == 8  # 4 MiB of input


@pytest.mark.parametrize("gain", [1.05, 1.0, 0.98])
def test_stays_where_growing_does_not_pay(gain):
    sizes = [n for n, _ in run(ChunkPlan.growing(1, 1200, MIB // 2), 1200, lambda n, cl: 1.0 if n < 8 else gain)]
    assert sizes[:5] == [4, 4, 8, 4, 8]  # in turns
    assert set(sizes[5:-2]) == {4}


def test_grows_by_a_gain_that_takes_two_chunks_to_see():
    sizes = [n for n, _ in run(ChunkPlan.growing(1, 1200, MIB // 2), 1204, lambda n, cl: 1.0 if n < 8 else 0.95)]
    assert sizes[:6] == [4, 4, 8, 4, 8, 8]
    assert set(sizes[4:]) == {8}


def test_grows_by_less_than_double_to_reach_the_largest():
    sizes = [n for n, _ in run(ChunkPlan.growing(1, 30, MIB // 2), 30, lambda n, cl: 1 / n)]
    assert sizes[:3] == [4, 4, 6]
    assert max(sizes) <= 30 / 5


def test_tries_the_layout_before_the_size():
    chunks = run(ChunkPlan.growing(1, 120, MIB // 2, True), 120, lambda n, cl: (0.9 if cl else 1.0) / n)
    assert chunks[:7] == [(4, False), (4, False), (4, True), (4, False), (4, True), (8, True), (8, True)]


def test_grows_in_the_callers_layout_if_the_other_is_slower():
    chunks = run(ChunkPlan.growing(1, 120, MIB // 2, True), 120, lambda n, cl: (1.1 if cl else 1.0) / n)
    assert chunks[:7] == [(4, False), (4, False), (4, True), (4, False), (4, True), (8, False), (8, False)]


@pytest.mark.parametrize("slow", [0, 1])
def test_one_slow_chunk_of_a_candidate_is_forgiven(slow):
    # The first one also pays for the libraries' set-up of a new shape.
    plan, seen = ChunkPlan.growing(1, 1200, MIB // 2), Counter()

    def seconds_per_row(n, cl):
        seen[n] += 1
        return 1 / n**0.1 + (1 if seen[n] - 1 == slow else 0)

    assert max(n for n, _ in run(plan, 1200, seconds_per_row)) == 8


def test_a_machine_that_slows_down_during_a_trial():
    # Everything takes twice as long from the third chunk on; in turns, both sides of the trial are hit.
    count = iter(range(1000))

    def seconds_per_row(n, cl):
        return (1 if next(count) < 2 else 2) / n**0.1

    assert max(n for n, _ in run(ChunkPlan.growing(1, 1200, MIB // 2), 1200, seconds_per_row)) == 8


def test_one_large_row_at_a_time():
    assert {n for n, _ in run(ChunkPlan.growing(1, 50, 8 * MIB), 50, lambda n, cl: 1 / n)} == {1}


def test_large_rows_are_channels_last_from_the_start():
    assert {cl for _, cl in run(ChunkPlan.growing(1, 50, 8 * MIB, True), 50, lambda n, cl: 1.0)} == {True}
    plan = ChunkPlan.growing(1, 50, 8 * MIB, True)
    assert plan.reject_layout()
    assert {cl for _, cl in run(plan, 50, lambda n, cl: 1.0)} == {False}


@pytest.mark.parametrize(("faster", "kept"), [(True, True), (False, False)])
def test_tries_channels_last_once_and_keeps_it_if_faster(faster, kept):
    chunks = run(ChunkPlan.fixed(1, 2, may_change_layout=True), 40, lambda n, cl: 0.9 if cl == faster else 1.0)
    assert [cl for _, cl in chunks[:5]] == [False, False, True, False, True]
    assert {cl for _, cl in chunks[5:]} == {kept}


def test_layout_is_not_touched_where_it_is_no_choice():
    assert {cl for _, cl in run(ChunkPlan.fixed(1, 2), 40, lambda n, cl: 1.0)} == {False}


def test_a_refused_layout_is_not_tried_again():
    plan = ChunkPlan.fixed(1, 2, may_change_layout=True)
    assert not plan.reject_layout()  # nothing to reject yet: the failure is the model's own
    for _ in range(2):
        plan.record(2, 1.0)
    assert plan.channels_last
    assert plan.reject_layout()
    assert {cl for _, cl in run(plan, 40, lambda n, cl: 1.0)} == {False}


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7, 11, 12, 100])
@pytest.mark.parametrize("batch", [1, 3, 5])
def test_chunks_hold_whole_steps_where_one_fits(batch, size):
    sizes = [n for n, _ in run(ChunkPlan.fixed(batch, size), batch * 7, lambda n, cl: 1.0)]
    assert sum(sizes) == batch * 7
    assert max(sizes) <= size
    if size >= batch:
        assert all(n % batch == 0 for n in sizes)
    else:
        assert all(n == size for n in sizes[:-1])


def test_finishes_a_step_before_chunks_hold_whole_ones():
    plan = ChunkPlan.growing(7, 700, MIB // 2)
    assert plan.size == 4
    sizes = [n for n, _ in run(plan, 700, lambda n, cl: 1 / n)]
    first_large = next(i for i, n in enumerate(sizes) if n >= 7)
    assert sum(sizes[:first_large]) % 7 == 0
    assert all(n % 7 == 0 for n in sizes[first_large:])

import copy
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
        left -= size
        plan.record(size, size * seconds_per_row(chunks[-1][0], chunks[-1][1]), left)
    assert left == 0
    return chunks


def test_small_inputs_go_in_one_chunk():
    assert run(ChunkPlan.growing(1, 50, row_bytes=400), 50, lambda n, cl: 1.0) == [(50, False)]


def test_first_chunk_is_about_two_mebibytes():
    assert ChunkPlan.growing(1, 10**6, row_bytes=1000).next_rows(10**6) == 2097  # 477 chunks, nearly alike
    assert FIRST_CHUNK_BYTES == 2 * MIB


@pytest.mark.parametrize(
    ("row_bytes", "n_rows", "first", "largest"),
    [
        (400, 50, 50, 50),
        (3 * 224 * 224 * 4, 50, 10, 10),
        (3 * 224 * 224 * 4, 500, 13, 20),
        (3 * 224 * 224 * 4, 10, 4, 4),
        (512 * 768 * 4, 50, 5, 8),
        (3 * 1024 * 1024 * 4, 50, 1, 1),
        (3 * 4096 * 4096 * 4, 50, 1, 1),
    ],
)
def test_a_parallel_device_gets_more_rows(row_bytes, n_rows, first, largest):
    plan = ChunkPlan.growing(1, n_rows, row_bytes, is_parallel=True)
    assert (plan.size, plan.largest) == (first, largest)


def test_a_short_call_tries_nothing():
    sizes = [n for n, _ in run(ChunkPlan.growing(1, 60, MIB // 2, True), 60, lambda n, cl: 1 / n)]
    assert set(sizes) == {4}


def test_calls_together_try_what_one_is_too_short_for():
    plan, tried = ChunkPlan.growing(1, 60, MIB // 2, True, True), []
    for _ in range(5):
        chunks = run(plan, 60, lambda n, cl: 1.0)
        tried.append([chunk for chunk in chunks if chunk != (4, True)])
        plan = plan.resumed(60)
    # 7, 15, 22, 30 and 37 rows may have been spent on candidates by then: two chunks of 4, later two of 8.
    assert tried == [[], [(4, False)] * 2, [], [(8, True)] * 2, []]


def test_no_more_than_an_eighth_of_all_rows_is_tried():
    plan = ChunkPlan.growing(1, 400, MIB // 2, True)
    sides = Counter(run(plan, 400, lambda n, cl: 0.95 if cl else 1.0))  # has to win twice
    assert sides[4, True] * 4 > 300
    first = Counter(run(ChunkPlan.growing(1, 96, MIB // 2, True), 96, lambda n, cl: 0.95 if cl else 1.0))
    assert first[4, True] == 2  # once is all that 96 rows allow


def test_chunks_that_are_nearly_full_count():
    # 12 rows make five chunks of 10. One that finishes a step, of 6 of its 8 rows, does not count.
    chunks = run(ChunkPlan.growing(1, 50, 180_000, True).resumed(1000), 50, lambda n, cl: 1.0)
    assert chunks[:4] == [(10, False), (10, False), (12, True), (12, True)]
    sizes = [n for n, _ in run(ChunkPlan.growing(8, 400, 420_864), 400, lambda n, cl: 1 / n)]
    assert sizes[:5] == [5, 5, 6, 8, 8]
    slow = iter([1, 1, 1, 9, 0.5, 1])  # the first whole chunk fills caches
    assert max(n for n, _ in run(ChunkPlan.growing(8, 400, 420_864), 400, lambda n, cl: next(slow, 0.5))[9:]) == 8


def test_a_candidate_is_compared_by_its_second_chunk_with_the_one_before_the_two():
    costs = iter([9, 1.0, 9, 0.8, 1.0, 1.0])  # the first chunk of a call, and after a change, fills caches
    chunks = run(ChunkPlan.growing(1, 400, MIB // 2, True), 400, lambda n, cl: next(costs, 1.0))
    assert chunks[:4] == [(4, False), (4, False), (4, True), (4, True)]
    assert {cl for _, cl in chunks[2:]} == {True}


def test_grows_while_the_time_per_row_improves():
    sizes = [n for n, _ in run(ChunkPlan.growing(1, 1200, MIB // 4), 1200, lambda n, cl: 1 / n)]
    assert sizes[:6] == [8, 8, 16, 16, 23, 23]
    assert max(sizes) == 23  # 5.75 MiB of input
    assert set(sizes[4:]) == {23, 22}  # the last chunks are nearly alike


@pytest.mark.parametrize("gain", [1.05, 1.0, 0.98])
def test_stays_where_growing_does_not_pay(gain):
    sizes = [n for n, _ in run(ChunkPlan.growing(1, 1200, MIB // 2), 1200, lambda n, cl: 1.0 if n < 8 else gain)]
    assert sizes[:5] == [4, 4, 8, 8, 4]
    assert set(sizes[5:]) == {4}


def test_a_small_gain_has_to_be_seen_twice():
    sizes = [n for n, _ in run(ChunkPlan.growing(1, 1200, 680_000), 1200, lambda n, cl: 1.0 if n < 8 else 0.95)]
    assert sizes[:8] == [4, 4, 8, 8, 4, 4, 8, 8]
    assert set(sizes[8:-2]) == {8}
    gains = iter([1, 1, 1, 0.9, 1, 1, 1, 1.1])
    sizes = [n for n, _ in run(ChunkPlan.growing(1, 1200, 680_000), 1200, lambda n, cl: next(gains, 1))]
    assert set(sizes[8:]) == {4}


def test_grows_by_less_than_double_to_reach_the_largest():
    sizes = [n for n, _ in run(ChunkPlan.growing(1, 320, 1_020_000), 320, lambda n, cl: 1 / n)]
    assert sizes[:4] == [3, 3, 5, 5]
    assert max(sizes) == 5
    sizes = [n for n, _ in run(ChunkPlan.growing(1, 30, MIB // 2).resumed(300), 30, lambda n, cl: 1 / n)]
    assert max(sizes) == 30 / 5


def test_tries_the_layout_before_the_size():
    plan = ChunkPlan.growing(1, 400, MIB // 2, True)
    chunks = run(plan, 400, lambda n, cl: (0.8 if cl else 1.0) / n)
    assert chunks[:6] == [(4, False), (4, False), (4, True), (4, True), (8, True), (8, True)]


def test_grows_in_the_layout_in_use_if_the_other_is_slower():
    chunks = run(ChunkPlan.growing(1, 400, MIB // 2, True), 400, lambda n, cl: (1.1 if cl else 1.0) / n)
    assert chunks[:8] == [*[(4, False)] * 2, *[(4, True)] * 2, *[(4, False)] * 2, *[(8, False)] * 2]


def test_chunks_are_timed_until_the_choice_is_made():
    plan = ChunkPlan.growing(1, 1200, MIB // 2)
    assert plan.is_timing(1196)
    run(plan, 1200, lambda n, cl: 1.0)
    assert not plan.is_timing(1196)
    assert not plan.resumed(1200).is_timing(1196)


def test_chunks_are_timed_only_where_something_may_be_tried():
    plan = ChunkPlan.growing(1, 50, MIB // 3)  # 7 rows a chunk, 10 at most: two chunks of a candidate are 20 rows
    timed = []
    for _ in range(4):
        timed.append(plan.is_timing(44))
        run(plan, 50, lambda n, cl: 1.0)
        plan = plan.resumed(50)
    assert timed == [False, False, False, True]
    assert not plan.is_timing(19)
    plan = ChunkPlan.growing(1, 1200, MIB // 2)
    for seconds in (9, 4):
        plan.record(4, seconds, 1000)
    assert plan.size == 8
    assert plan.is_timing(0)  # the candidate's own chunks


def test_a_chunk_after_one_of_unknown_time_does_not_count():
    plan = ChunkPlan.growing(1, 1200, MIB // 2)
    for seconds in (9, None, 4):
        plan.record(4, seconds, 1000)
        assert plan.size == 4
    plan.record(4, 4, 1000)
    assert plan.size == 8


def test_a_trial_that_a_call_ends_in_begins_anew():
    plan = ChunkPlan.growing(1, 1200, MIB // 2)
    for seconds in (9, 4):
        plan.record(4, seconds, 1000)
    assert plan.size == 8
    resumed = plan.resumed(1200)
    assert (resumed.size, plan.size) == (4, 8)


def test_what_a_resumed_plan_takes_in_is_its_own():
    plan = ChunkPlan.growing(1, 1200, MIB // 2)
    for seconds in (9, 4, 9, 7.2):  # a candidate that has to be faster twice
        plan.record(plan.size, seconds, 1000)
    before = copy.deepcopy(plan)
    resumed = plan.resumed(1200)
    for seconds in (9, 4, 9, 2.0):
        resumed.record(resumed.size, seconds, 1000)
    assert plan == before


def test_a_candidate_that_does_not_fit_in_memory_is_dropped():
    plan = ChunkPlan.growing(1, 1200, 600_000)
    for seconds in (9, 4):
        plan.record(4, seconds, 1000)
    assert plan.size == 8
    assert plan.shrink(8)
    assert plan.size == plan.largest == 4
    assert plan.shrink(4)
    assert plan.size == plan.largest == 2


def test_a_layout_that_does_not_fit_in_memory_is_dropped():
    plan = ChunkPlan.fixed(1, 80, MIB // 2, 1, may_change_layout=True, prefers_channels_last=True)
    for seconds in (9, 1):
        plan.record(1, seconds, 70)
    assert not plan.channels_last
    assert plan.shrink(1)
    assert (plan.size, plan.channels_last) == (1, True)
    assert not plan.shrink(1)


def test_takes_as_many_rows_as_are_cheap_once_it_knows_what_one_takes():
    for row_mib, wanted in ((1, 10), (20, 9), (32, 6), (40, 4), (100, 4)):
        plan = ChunkPlan.growing(1, 1200, 600_000)
        plan.limit_memory(row_mib * MIB, None)
        assert plan.size == wanted
        plan.limit_memory(MIB, None)
        assert plan.size == wanted
    fixed = ChunkPlan.fixed(1, 1200, 600_000, 4)
    fixed.limit_memory(MIB, None)
    assert fixed.size == 4


@pytest.mark.parametrize(
    ("weight_mib", "row_mib", "wanted"),
    [(50, 30, 6), (90, 25, 7), (90, 60, 4), (300, 75, 8), (300, 90, 6), (300, 200, 4), (300, 1, 10), (98, 10, 10)],
)
def test_models_of_many_weights_get_more_rows(weight_mib, row_mib, wanted):
    plan = ChunkPlan.growing(1, 1200, 600_000, weight_bytes=weight_mib * MIB)
    plan.limit_memory(row_mib * MIB, None)
    assert plan.size == wanted
    plan = ChunkPlan.growing(1, 1200, 600_000, weight_bytes=weight_mib * MIB)
    plan.limit_memory(row_mib * MIB, 5 * row_mib * MIB)
    assert plan.size == min(wanted, 5)


def test_weights_do_not_make_chunks_of_large_rows_or_of_most_of_a_call():
    for n_rows, row_bytes, wanted in ((1200, 3 * MIB, 1), (30, MIB // 2, 6), (30, MIB // 4, 8)):
        plan = ChunkPlan.growing(1, n_rows, row_bytes, weight_bytes=1000 * MIB)
        for _ in range(5):
            plan = plan.resumed(n_rows)
        plan.limit_memory(MIB, None)
        assert plan.size == wanted
    whole_steps = ChunkPlan.growing(3, 1200, 600_000, weight_bytes=1000 * MIB)
    whole_steps.limit_memory(MIB, None)
    assert whole_steps.next_rows(1196) == 2  # finishes the step that the first chunk of 4 began
    assert whole_steps.next_rows(1194) == 9


def test_nothing_grows_after_memory_ran_out_at_one_row():
    plan = ChunkPlan.growing(1, 1200, 600_000, weight_bytes=1000 * MIB)
    while plan.shrink(plan.size):
        pass
    plan.savings += 1
    plan.limit_memory(MIB, None)
    assert plan.size == 1
    large = ChunkPlan.growing(1, 1200, 2 * MIB, weight_bytes=1000 * MIB)
    assert not large.shrink(1)
    large.savings += 1
    large.limit_memory(MIB, None)
    assert large.size == 1


def test_a_budget_limits_what_is_tried():
    plan = ChunkPlan.growing(1, 1200, MIB // 2)
    plan.limit_memory(100 * MIB, 600 * MIB)
    assert (plan.size, plan.largest) == (4, 6)
    plan.limit_memory(200 * MIB, 600 * MIB)
    assert (plan.size, plan.largest) == (4, 4)


def test_one_large_row_at_a_time():
    assert {n for n, _ in run(ChunkPlan.growing(1, 50, 8 * MIB), 50, lambda n, cl: 1 / n)} == {1}


def test_large_rows_are_channels_last_from_the_start():
    assert {cl for _, cl in run(ChunkPlan.growing(1, 50, 8 * MIB, True), 50, lambda n, cl: 1.0)} == {True}
    plan = ChunkPlan.growing(1, 50, 8 * MIB, True)
    assert plan.reject_layout()
    assert {cl for _, cl in run(plan, 50, lambda n, cl: 1.0)} == {False}


@pytest.mark.parametrize("prefers", [True, False])
@pytest.mark.parametrize("faster", [True, False])
def test_tries_the_other_layout_once_and_keeps_it_if_faster(prefers, faster):
    plan = ChunkPlan.fixed(1, 80, MIB // 2, 2, may_change_layout=True, prefers_channels_last=prefers)
    chunks = run(plan, 80, lambda n, cl: 0.8 if cl == faster else 1.0)
    assert [cl for _, cl in chunks[:4]] == [prefers, prefers, not prefers, not prefers]
    assert {cl for _, cl in chunks[4:]} == {faster}


@pytest.mark.parametrize("prefers", [True, False])
def test_layout_is_not_touched_where_it_is_no_choice(prefers):
    plan = ChunkPlan.fixed(1, 80, MIB // 2, 2, prefers_channels_last=prefers)
    assert {cl for _, cl in run(plan, 80, lambda n, cl: 1.0)} == {False}


def test_a_refused_layout_is_not_tried_again():
    plan = ChunkPlan.fixed(1, 80, MIB // 2, 2, may_change_layout=True)
    assert not plan.reject_layout()  # nothing to reject yet: the failure is the model's own
    for _ in range(2):
        plan.record(2, 1.0, 76)
    assert plan.channels_last
    assert plan.reject_layout()
    assert {cl for _, cl in run(plan, 76, lambda n, cl: 1.0)} == {False}


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7, 11, 12, 100])
@pytest.mark.parametrize("batch", [1, 3, 5])
def test_chunks_hold_whole_steps_where_one_fits(batch, size):
    sizes = [n for n, _ in run(ChunkPlan.fixed(batch, batch * 7, MIB // 2, size), batch * 7, lambda n, cl: 1.0)]
    assert sum(sizes) == batch * 7
    assert max(sizes) <= size
    if size >= batch:
        assert all(n % batch == 0 for n in sizes)
    else:
        assert max(sizes) - min(sizes) <= 1


def test_finishes_a_step_before_chunks_hold_whole_ones():
    plan = ChunkPlan.growing(7, 700, MIB // 2)
    assert plan.size == 4
    sizes = [n for n, _ in run(plan, 700, lambda n, cl: 1 / n)]
    first_large = next(i for i, n in enumerate(sizes) if n >= 7)
    assert sum(sizes[:first_large]) % 7 == 0
    assert all(n % 7 == 0 for n in sizes[first_large:])


def test_chunks_alike():
    plan = ChunkPlan.fixed(1, 100, 4, 9)  # 4 chunks of 9 and 8 of 8
    assert [plan.n_alike(9, left, 100) for left in (100, 91, 64)] == [4, 3, 0]
    assert plan.n_alike(8, 64, 100) == 8
    assert plan.n_alike(8, 64, 5) == 5
    assert plan.n_alike(8, 0, 100) == 0

"""Threads keep the order of items, run a little ahead, and fail where they are waited for."""

import threading

import pytest

from mitosis.threads import in_threads


@pytest.mark.parametrize("n", [0, 1, 3])
def test_threads_keep_the_order_and_run_a_little_ahead(n):
    asked, barrier = [], threading.Event()

    def items():
        for item in range(10):
            asked.append(item)
            yield item

    def work(item):
        if item == 0 and n > 1:
            barrier.wait(10)  # the first is done last
        elif item == 1:
            barrier.set()
        return item * item

    done = in_threads(work, items(), n, ahead=n)
    assert next(done) == 0
    assert len(asked) == n + 1
    assert list(done) == [item * item for item in range(1, 10)]


@pytest.mark.parametrize("n", [0, 2])
def test_what_fails_in_a_thread_is_raised(n):
    def work(item):
        if item == 3:
            raise ValueError("item 3")
        return item

    done = in_threads(work, range(10), n, ahead=n)
    assert [next(done) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="item 3"):
        next(done)


@pytest.mark.parametrize("ahead", [0, 1, 4])
def test_no_more_than_asked_for_waits(ahead):
    taken = []
    for done, _ in enumerate(in_threads(taken.append, iter(range(30)), 2, ahead), 1):
        assert len(taken) - done <= ahead
    assert sorted(taken) == list(range(30))

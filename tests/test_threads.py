"""Threads keep the order of items, run a little ahead, fail where they are waited for, and may share a heap."""

import ctypes
import platform
import subprocess
import sys
import threading

import pytest

from mitosis.threads import in_threads, share_heap

HEAPS = """
import ctypes, sys, threading
from mitosis.threads import share_heap

if sys.argv[1] == "shared":
    share_heap()
together = threading.Barrier(3)

def work():
    held = [bytearray(50_000) for _ in range(20)]
    together.wait(60)
    return held

threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
libc.malloc_info(0, ctypes.c_void_p(libc.fopen(b"/dev/stdout", b"w")))
libc.fflush(None)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="heaps of threads are those of glibc")
@pytest.mark.parametrize(("how", "n_heaps"), [("shared", {1}), ("apart", {2, 3, 4})])
def test_threads_take_memory_from_one_heap_if_they_are_to(how, n_heaps):
    said = subprocess.run([sys.executable, "-c", HEAPS, how], check=True, capture_output=True, text=True).stdout
    assert said.count("<heap nr=") in n_heaps


def test_without_glibc_heaps_are_left_as_they_are(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: object())
    share_heap()
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(ctypes, "CDLL", None)
    share_heap()


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

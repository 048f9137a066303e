"""Threads: work done ahead of where it is needed, in order, and one heap for all of them."""

import ctypes
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["in_threads", "share_heap"]

_M_ARENA_MAX = -8  # of glibc's malloc.h

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(work: Callable[[Item], Result], items: Iterable[Item], n: int, ahead: int) -> Iterator[Result]:
    """What `work` makes of each item, in order, by `n` threads, up to `ahead` items ahead; with 0 by the caller."""
    if not n:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(n) as pool:
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def share_heap() -> None:
    """Let threads that are yet to start take memory from one heap of this process; nothing but where glibc is in use.

    There each has one of its own by default and keeps what it frees: a count of a slide of 80,000 px takes 1.45 GB
    instead of 1.30, in the same time. It is for programs, which may choose so for all that runs in their process.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)

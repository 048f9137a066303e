"""Work done ahead of where it is needed, in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["in_threads"]

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

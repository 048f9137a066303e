"""Contenders take turns on fresh work, so that a busy machine disturbs the ratios of their times little."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["take_turns"]


def take_turns(
    contenders: Mapping[str, Callable[[Any], Any]], rounds: Sequence[Mapping[str, Sequence[Any]]]
) -> dict[str, float]:
    """Median CPU seconds a round of each contender; what they return is dropped at once, as a consumer would."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    for number, work in enumerate(rounds):
        for name in order[number % len(order) :] + order[: number % len(order)]:
            start = time.process_time()
            for item in work[name]:
                contenders[name](item)
            seconds[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}

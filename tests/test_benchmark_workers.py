"""The benchmark of workers: the reports are the same; how fast they come depends on the machine."""

from argparse import Namespace

import benchmark_workers
import pytest
from conftest import busy_network, save_network

pytest.importorskip("distributed", reason="the extra cluster is not installed here")


@pytest.mark.slow
def test_one_and_two_workers_are_timed_and_agree(monkeypatch, tmp_path):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(benchmark_workers.torch, "set_num_threads", lambda _n: None)
    save_network(busy_network(), tmp_path / "model")
    arguments = Namespace(model=str(tmp_path / "model"), side=1500, cache=tmp_path, rounds=1)
    times, reports = benchmark_workers.benchmark_workers(arguments)
    assert times.value > 0
    assert times.ratio == pytest.approx(times.baseline / times.value)
    assert (reports.value, reports.ratio) == (1, 1.0)

"""The benchmark of a GPU: all but its graphs runs on a processor as well; how fast it is depends on the machine."""

from types import SimpleNamespace

import benchmark
import benchmark_gpu
import pytest
import torch
from conftest import busy_network, save_network

from mitosis.config import load_config


def test_without_a_gpu_it_ends_in_a_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"^gpu: PyTorch sees no GPU on this machine"):
        benchmark.main(["gpu"])


@pytest.mark.slow
def test_it_measures_network_count_and_training(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # the graphs need one that is idle

    def no_compiler(_):
        raise RuntimeError("no\ncompiler")

    few = {"N_RUNS": 1, "N_STEPS": 1, "BATCH_SIZES": (1,), "READERS": (1,), "LOADERS": (0,)}
    for name, value in {**few, "PRECISIONS": ("float32", "bfloat16")}.items():
        monkeypatch.setattr(benchmark_gpu, name, value)
    monkeypatch.setattr(torch, "compile", no_compiler)
    monkeypatch.setattr(
        benchmark_gpu,
        "load_config",
        lambda *given: load_config(*given) if given else load_config(None, ("count.tile_size=256", "extract.size=128")),
    )
    save_network(busy_network(), tmp_path / "model")
    arguments = SimpleNamespace(model=str(tmp_path / "model"), side=1500, rounds=1)
    figures = {figure.name: figure for figure in benchmark_gpu._figures(arguments, torch.device("cpu"))}
    assert "torch.compile fails here: RuntimeError: no compiler" in capsys.readouterr().err
    counts = [f"one stage, {precision}, 1 readers" for precision in ("float32", "bfloat16")]
    assert {"network alone, float32, 1 at once, eager", "reading alone, 1 readers", *counts} < set(figures)
    assert figures["figures counted, float32"].ratio == 1
    assert any(name.startswith("training, 0 loaders, ") for name in figures)
    for figure in figures.values():
        assert figure.value > 0
        assert figure.ratio == pytest.approx(figure.value / figure.baseline)

"""Several processes train as one: the same numbers but for rounding, and an error on one ends all with its reason."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import TINY
from safetensors.torch import load_file, save_file
from torch import distributed, nn
from torch.distributed import TCPStore

from mitosis.auxiliary import TaughtUNet, target_maps, taught_loss
from mitosis.checkpoints import load_model, load_state
from mitosis.config import Config, NetworkConfig, save_config
from mitosis.distributed import Ranks, join_ranks
from mitosis.errors import ConfigError, MitosisError, PatchIndexError
from mitosis.learner import Learner
from mitosis.losses import LOSSES
from mitosis.patches import PatchIndex
from mitosis.training import train
from mitosis.unet import UNet

# Far more than they take, for a busy machine: processes that wait for each other are slow there.
pytestmark = pytest.mark.timeout(1800)

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
EXACT = Config.model_validate(
    {**TINY.model_dump(), "train": {**TINY.train.model_dump(), "precision": "float32", "steps": 6, "batch_size": 4}}
)


def launch(n_ranks, function, *arguments):
    """Run ``function(*arguments)`` in `n_ranks` processes, as torchrun does; gives their exit codes."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("forkserver")  # it imports torch once for all
    context.set_forkserver_preload(["mitosis.training", "mitosis.extraction"])
    processes = [
        context.Process(target=_start, args=(rank, n_ranks, store.port, function, arguments)) for rank in range(n_ranks)
    ]
    for process in processes:
        process.start()
    end = time.monotonic() + 600
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
    for process in processes:
        process.kill()  # one that hangs; the others have ended
        process.join()
    return [process.exitcode for process in processes]


def _start(rank, n_ranks, port, function, arguments):
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"  # the store is not that of the first rank
    os.environ.update(dict(zip(VARIABLES, map(str, (rank, n_ranks, "127.0.0.1", port)), strict=True)))
    function(*arguments)


@pytest.fixture
def environment(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_a_process_that_torchrun_did_not_start_is_alone(environment):
    assert Ranks.launched() == Ranks(0, 1)
    environment.setenv("RANK", "1")
    environment.setenv("WORLD_SIZE", "2")
    assert Ranks.launched() == Ranks(0, 1)  # as a scheduler of jobs may say, without a place to meet


def test_torchrun_says_who_a_process_is(environment):
    for name, value in zip(VARIABLES, ("1", "2", "localhost", "29500"), strict=True):
        environment.setenv(name, value)
    assert Ranks.launched() == Ranks(1, 2)
    assert not Ranks.launched().is_first


@pytest.mark.parametrize("launched", [False, True])
def test_one_process_alone_uses_nothing_of_it(environment, launched):
    if launched:
        for name, value in zip(VARIABLES, ("0", "1", "localhost", "29500"), strict=True):
            environment.setenv(name, value)
    network, part = UNet(2, 1), torch.ones(3)
    with join_ranks() as ranks:
        assert not torch.distributed.is_initialized()
        assert ranks.is_first
        assert ranks.parallel(network) is network
        assert ranks.whole(part) is part
        assert [ranks.all(True), ranks.all(False), ranks.same(1, "a")] == [True, False, True]
        ranks.wait()


def test_processes_that_are_connected_already_stay_so():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        with join_ranks() as ranks:
            assert ranks == Ranks(0, 1)
        assert torch.distributed.is_initialized()
    finally:
        torch.distributed.destroy_process_group()


def test_more_processes_than_gpus_are_refused(environment):
    for name, value in zip((*VARIABLES, "LOCAL_RANK"), ("2", "3", "localhost", "29500", "2"), strict=True):
        environment.setenv(name, value)
    environment.setattr(torch.cuda, "is_available", lambda: True)
    environment.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"too many for a machine with 2 GPUs"), join_ranks():
        pass


def _batch(n):
    generator = torch.Generator().manual_seed(5)
    images = torch.rand(n, 3, 8, 8, dtype=torch.float64, generator=generator)
    masks = (torch.rand(n, 8, 8, generator=generator) < 0.2).float()
    masks[0] = 255  # a part with nothing that counts
    masks[1, 0, 0] = 1
    return images, masks


def _learn(ranks, n):
    """Loss, gradients and running statistics of one step in float64, for each loss; then a prediction."""
    images, masks = (whole[ranks.rank :: ranks.n_ranks] for whole in _batch(n))
    found = {}
    for name in LOSSES:
        torch.manual_seed(0)
        network = UNet(2, 1).double()
        parallel = ranks.parallel(network)
        logits = ranks.whole(parallel(images))
        loss = LOSSES[name](logits, ranks.whole(masks), torch.tensor([1.0, 20.0]))
        loss.backward()
        found |= {f"{name} loss": loss.detach(), f"{name} logits": logits.detach().clone()}
        found |= {f"{name} gradient {key}": value.grad for key, value in network.named_parameters()}
        found |= {f"{name} {key}": value for key, value in network.state_dict().items()}
        found[f"{name} prediction"] = ranks.whole(network.eval()(images)).detach().clone()
    found |= _learn_more(ranks, images, masks)
    return {key: value.contiguous() for key, value in found.items()}


def _learn_more(ranks, images, masks):
    """Loss and gradients where further heads answer too."""
    torch.manual_seed(0)
    settings = EXACT.train.model_copy(update={"deep_supervision": 0.5, "auxiliary_target": "centre"})
    network = TaughtUNet.from_settings(NetworkConfig(width=2, depth=1), settings).double()
    parallel = ranks.parallel(network)  # without a name it would be gone before the gradients are averaged
    answers = [ranks.whole(answer) for answer in parallel(images)]
    maps = ranks.whole(target_maps(masks, "centre"))
    loss = taught_loss(answers, ranks.whole(masks), maps, torch.tensor([1.0, 20.0]), settings)
    loss.backward()
    gradients = {f"taught gradient {key}": value.grad for key, value in network.named_parameters()}
    assert len(answers) == 3
    return {"taught loss": loss.detach(), **gradients}


def _leave_a_step_out(ranks, folder):
    """The second process alone gets a loss that is not finite in step 2, with a gradient that is."""
    plain, steps = LOSSES["ce"], iter(range(1, 4))
    bad = torch.tensor(float("nan"))
    LOSSES["failing"] = lambda *batch: plain(*batch) + (bad if next(steps) == 2 and ranks.rank == 1 else 0)
    config = EXACT.model_copy(update={"train": EXACT.train.model_copy(update={"loss": "failing"})})
    learner = Learner(config, [99, 1], folder, ranks)
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    losses = [learner.step(step, images, torch.zeros(2, 32, 32)) for step in (1, 2, 3)]
    weights = {f"network {name}": value for name, value in learner.network.state_dict().items()}
    weights |= {f"average {name}": value for name, value in learner.descent.average.state_dict().items()}
    return {**weights, "losses": torch.tensor(losses), "skipped": torch.tensor(learner.descent.skipped)}


def _save_numbers(folder):
    with join_ranks() as ranks:
        assert ranks.all(True)
        assert not ranks.all(ranks.rank != 1)
        assert ranks.same("alike", None)
        assert not ranks.same("another", ranks.rank)
        save_file(_learn(ranks, 6), folder / f"learn-{ranks.rank}.safetensors")
        numbers = {name: value.contiguous() for name, value in _leave_a_step_out(ranks, folder).items()}
        save_file(numbers, folder / f"leave-{ranks.rank}.safetensors")


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    """What each of three processes computed: ``(which, rank) -> tensors by name``."""
    folder = tmp_path_factory.mktemp("numbers")
    assert launch(3, _save_numbers, folder) == [0, 0, 0]
    return lambda which, rank: load_file(folder / f"{which}-{rank}.safetensors")


@pytest.mark.slow
def test_every_loss_has_the_value_and_the_gradients_of_one_process(numbers):
    """In float64, so that nothing can hide behind rounding."""
    expected = _learn(Ranks(), 6)
    for rank in range(3):
        found = numbers("learn", rank)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.slow
def test_a_step_that_one_process_leaves_out_all_leave_out(numbers):
    first = numbers("leave", 0)
    assert torch.isfinite(first["losses"]).tolist() == [True, False, True]
    assert int(first["skipped"]) == 1
    for rank in (1, 2):
        for name, value in numbers("leave", rank).items():
            torch.testing.assert_close(value, first[name], rtol=0, atol=0, equal_nan=True)


@pytest.fixture(scope="module")
def alone(patches_folder, tmp_path_factory):
    """The run of one process; read-only by agreement."""
    out = tmp_path_factory.mktemp("alone") / "run"
    train(PatchIndex.read(patches_folder), out, EXACT)
    return out


@pytest.fixture(scope="module")
def together(patches_folder, tmp_path_factory):
    """The run of two, and what it printed; read-only by agreement."""
    folder = tmp_path_factory.mktemp("together")
    save_config(folder / "settings.yaml", EXACT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "mitosis"]
    words = ["train", patches_folder, "--out", folder / "run", "--config", folder / "settings.yaml"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *words], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "run", done


@pytest.mark.slow
def test_two_processes_train_as_one(alone, together):
    out, _ = together
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in alone.iterdir())
    for old, new in zip(*(_metrics(folder) for folder in (alone, out)), strict=True):
        assert new == pytest.approx(old, abs=1e-5)
    _assert_close(out, alone)
    old, new = (load_model(folder)[1] for folder in (alone, out))
    assert new.training == old.training
    assert new.threshold == pytest.approx(old.threshold, abs=1e-4)


def _assert_close(folder, other):
    for name in ("network", "average", "best"):
        new, old = (load_state(run)[name] for run in (folder, other))
        assert list(new) == list(old)
        for key, value in old.items():
            torch.testing.assert_close(new[key], value, rtol=1e-4, atol=1e-5)


def _metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_only_the_first_process_speaks(together):
    _, done = together
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    assert [line.split(":")[0] for line in lines[:-1]] == ["step 2", "step 4", "step 6", "Best"]
    assert lines[-1].endswith("model.safetensors")
    assert "Warning" not in done.stderr


def test_a_batch_that_cannot_be_shared_evenly_leaves_no_folder(index, tmp_path, monkeypatch):
    monkeypatch.setattr("mitosis.training.join_ranks", lambda: nullcontext(Ranks(0, 3)))
    with pytest.raises(ConfigError, match=r"4 patches cannot be shared evenly by 3 processes"):
        train(index, tmp_path / "run", EXACT)
    assert not (tmp_path / "run").exists()


class StoppedError(Exception):
    pass


class FaultyIndex(PatchIndex):
    """Fails, or ends its process, when the tenth image is asked for."""

    fault, n_read = "", 0

    def read_image(self, patch):
        FaultyIndex.n_read += 1
        if self.n_read == 10 and self.fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.n_read == 10 and self.fault == "damaged":
            raise PatchIndexError(f"{patch.image}: damaged. Extract anew.")
        return super().read_image(patch)

    def where(self, keep):
        return FaultyIndex(self.folder, super().where(keep).patches)


def _train(patches, folder, fault):
    """Train where something goes wrong on one process; what ends each goes into a file of its own."""
    rank, index, on_step = Ranks.launched().rank, PatchIndex.read(patches), lambda _step, _loss: None
    out = folder / ("stopped" if fault == "resumed" else fault)
    if fault == "stopped":

        def on_step(step, _loss):
            if step == 3:
                raise StoppedError("at step 3")

    elif fault == "others" and rank == 1:
        index = PatchIndex(index.folder, tuple(replace(patch, x=patch.x + 1) for patch in index.patches))
    elif rank == 1:
        FaultyIndex.fault, FaultyIndex.n_read = fault, 0
        index = FaultyIndex(index.folder, index.patches)
    destroy = distributed.destroy_process_group

    def destroy_and_look():
        destroy()
        (folder / f"threads-{fault}-{rank}.txt").write_text(_threads())

    try:
        distributed.destroy_process_group = destroy_and_look
        card = train(index, out, EXACT, resume=fault == "resumed", on_step=on_step)
        message = f"F1 {card.validation['f1']}"
    except (MitosisError, StoppedError) as error:
        message = f"{type(error).__name__}: {error}"
    finally:
        distributed.destroy_process_group = destroy
    (folder / f"{fault}-{rank}.txt").write_text(message)


def _threads():
    """Names of the threads of this process, a line each."""
    names = ""
    for path in Path("/proc/self/task").glob("*/comm"):
        with suppress(OSError):  # it has ended meanwhile
            names += path.read_text()
    return names


def _train_in_turn(patches, folder, *faults):
    for fault in faults:
        _train(patches, folder, fault)


@pytest.fixture(scope="module")
def faults(patches_folder, tmp_path_factory):
    """Folder of runs of two processes in which something went wrong; read-only by agreement."""
    folder = tmp_path_factory.mktemp("faults")
    assert launch(2, _train_in_turn, patches_folder, folder, "others", "stopped") == [0, 0]
    shutil.copytree(folder / "stopped", folder / "copy")
    assert launch(2, _train_in_turn, patches_folder, folder, "resumed", "damaged") == [0, 0]
    assert launch(2, _train_in_turn, patches_folder, folder, "killed") == [0, -signal.SIGKILL]
    return folder


def _said(folder, fault):
    files = [folder / f"{fault}-{rank}.txt" for rank in range(2)]
    return [path.read_text() if path.exists() else "" for path in files]


@pytest.mark.slow
def test_a_stop_of_the_first_process_ends_the_other_and_both_go_on_to_the_same_bytes(faults, together):
    assert _said(faults, "stopped") == [
        "StoppedError: at step 3",
        "ModelError: Process 1 of 2 failed, so all stop: StoppedError('at step 3')",
    ]
    assert load_state(faults / "copy")["step"] == 2
    first, second = _said(faults, "resumed")
    assert first == second
    assert first.startswith("F1 ")
    for name in ("model.safetensors", "model.json", "metrics.jsonl"):
        assert (faults / "stopped" / name).read_bytes() == (together[0] / name).read_bytes(), name


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="threads are listed in /proc")
def test_the_threads_that_connect_processes_end_with_the_run(faults):
    """One that is alive when Python ends may abort the process, though all went well."""
    for said in _said(faults, "threads-resumed"):
        assert "python" in said
        assert "gloo" not in said


@pytest.mark.slow
def test_one_process_goes_on_with_the_run_of_two(faults, alone, patches_folder, tmp_path):
    out = shutil.copytree(faults / "copy", tmp_path / "run")
    train(PatchIndex.read(patches_folder), out, EXACT, resume=True)
    _assert_close(out, alone)


@pytest.mark.slow
def test_an_error_on_one_process_ends_all_with_its_reason(faults):
    first, second = _said(faults, "damaged")
    assert second.startswith("PatchIndexError: ")
    assert second.endswith("damaged. Extract anew.")
    assert first == f"ModelError: Process 2 of 2 failed, so all stop: {second.removeprefix('PatchIndexError: ')}"


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_others(faults):
    first, second = _said(faults, "killed")
    assert first.startswith("ModelError: Another process of this run is gone, so all stop.")
    assert second == ""


@pytest.mark.slow
def test_processes_that_see_other_patches_do_not_train_together(faults):
    for message in _said(faults, "others"):
        assert "do not find the same settings, patches and saved state" in message
    assert not (faults / "others" / "state.pt").exists()


def test_layers_that_are_shared_are_those_of_batch_normalisation(monkeypatch):
    """On a GPU torch's own take their place; both keep the names and values of the weights."""
    monkeypatch.setattr("mitosis.distributed.DistributedDataParallel", lambda network: network)
    network = UNet(2, 1)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    shared = Ranks(0, 2).parallel(network)
    kinds = {type(layer).__name__ for layer in shared.modules() if isinstance(layer, nn.BatchNorm2d)}
    assert kinds == {"_SharedBatchNorm"}
    assert list(shared.state_dict()) == list(before)
    for name, value in shared.state_dict().items():
        assert torch.equal(value, before[name])

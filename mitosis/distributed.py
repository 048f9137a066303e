"""One training run on several processes, as ``torchrun`` starts them: a rank is one of them.

Each rank shows the network its part of every batch. The result is that of one process but for rounding, whatever the
number of ranks, because nothing is computed from a part alone that hangs on the whole batch: batch normalisation takes
its statistics over all parts, the loss sees the logits of all (so any loss does, without knowing of ranks), and
gradients are averaged before they are clipped.
"""

import hashlib
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from typing import Any, cast

import torch
from torch import Tensor, distributed, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from mitosis.errors import ConfigError, MitosisError, ModelError

__all__ = ["Ranks", "join_ranks"]

# The others wait while the first validates. A rank that has died is noticed at once, not by this.
_PATIENCE = timedelta(hours=6)

# Several runs of one process, one after the other, must not read what the ranks told each other in an earlier one.
_RUNS = count()


@dataclass(frozen=True)
class Ranks:
    """Which process this is (`rank`, from 0), and of how many. One process alone is rank 0 of 1, and pays nothing."""

    rank: int = 0
    n_ranks: int = 1

    @classmethod
    def launched(cls) -> "Ranks":
        """As torchrun says in the environment; alone if it did not start this process."""
        if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
            return cls()
        return cls(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))

    @property
    def is_first(self) -> bool:
        """Whether it is this rank that validates, writes files and prints."""
        return self.rank == 0

    def wait(self) -> None:
        """Go on when all ranks have come here."""
        self.all(True)

    def all(self, here: bool) -> bool:
        """Whether it is so on all ranks."""
        if self.n_ranks == 1:
            return here
        flag = torch.tensor(int(here))
        distributed.all_reduce(flag, distributed.ReduceOp.MIN)
        return bool(flag)

    def same(self, *values: object) -> bool:
        """Whether all ranks have the same values, by their ``repr``."""
        if self.n_ranks == 1:
            return True
        digest = hashlib.blake2b(repr(values).encode(), digest_size=7).digest()
        extremes = torch.tensor([1, -1]) * int.from_bytes(digest)
        distributed.all_reduce(extremes, distributed.ReduceOp.MAX)
        return int(extremes.sum()) == 0

    def whole(self, part: Tensor) -> Tensor:
        """The tensors of all ranks as one, item by item as `mitosis.sampling.for_rank` dealt them out: [n * B, ...].

        Its gradient is right for a value that every rank computes from the whole, in a network of `parallel`.
        """
        return part if self.n_ranks == 1 else cast(Tensor, _Whole.apply(part, self.rank, self.n_ranks))

    def parallel(self, network: nn.Module) -> nn.Module:
        """Something to call in place of `network`, which averages gradients over the ranks and shares batch statistics.

        The layers of batch normalisation in `network` are replaced, so this comes before its parameters go to an
        optimiser. Names and values in its ``state_dict`` stay; values become those of the first rank.
        """
        if self.n_ranks == 1:
            return network
        if next(network.parameters()).is_cuda:
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]  # untyped library
        else:
            _share_statistics(network)
        return DistributedDataParallel(network)


@contextmanager
def join_ranks() -> Iterator[Ranks]:
    """Connect the ranks for as long as the block lasts. One process alone, or ranks connected before, are left as is.

    Processes with a GPU talk by NCCL, others by gloo. When one fails and ends, the others end as well, and say why.

    Raises
    ------
    ConfigError
        There are more processes on this machine than GPUs.
    ModelError
        Another rank has failed, or was killed.
    """
    if distributed.is_available() and distributed.is_initialized():
        yield Ranks(distributed.get_rank(), distributed.get_world_size())
        return
    ranks = Ranks.launched()
    if ranks.n_ranks == 1:
        yield ranks
        return
    store = _connect(ranks)
    try:
        yield ranks
    except Exception as error:
        if reason := _failure_elsewhere(store, ranks, error):
            raise ModelError(reason) from error
        with suppress(RuntimeError):  # where the store was is gone, and so are those who would read it
            store.set(f"failure/{ranks.rank}", str(error) if isinstance(error, MitosisError) else repr(error))
        raise
    finally:
        distributed.destroy_process_group()


def _connect(ranks: Ranks) -> Store:
    """Make the process group; gives where the ranks leave word of what has failed."""
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        local, n_gpus = int(os.environ.get("LOCAL_RANK", ranks.rank)), torch.cuda.device_count()
        if local >= n_gpus:
            raise ConfigError(
                f"{local + 1} or more processes are too many for a machine with {n_gpus} GPUs. "
                "Lower --nproc-per-node of torchrun."
            )
        torch.cuda.set_device(local)
    # `DistributedDataParallel` imports this. Imported while a group lives, it keeps the group and its threads for good,
    # and a thread that still works when Python ends aborts the process.
    importlib.import_module("torch._dynamo")
    meeting, rank, n_ranks = next(iter(rendezvous("env://", timeout=_PATIENCE)))
    store = PrefixStore(f"mitosis/{next(_RUNS)}", meeting)
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if has_gpu else "gloo", store=store, rank=rank, world_size=n_ranks, timeout=_PATIENCE
    )
    return store


def _failure_elsewhere(store: Store, ranks: Ranks, error: Exception) -> str:
    """What another rank died of, if `error` is but the lost connection to it; else nothing."""
    if not isinstance(error, RuntimeError) or isinstance(error, MitosisError):
        return ""
    with suppress(RuntimeError):
        for rank in range(ranks.n_ranks):
            if store.check([f"failure/{rank}"]):
                reason = store.get(f"failure/{rank}").decode()
                return f"Process {rank + 1} of {ranks.n_ranks} failed, so all stop: {reason}"
    if isinstance(error, distributed.DistError) or "onnection" in str(error):
        return (
            "Another process of this run is gone, so all stop. If it says nothing itself, it was killed, perhaps for "
            "want of memory. Add --resume to go on from the last saved state."
        )
    return ""


class _Whole(torch.autograd.Function):
    """Every rank computes the same loss of the whole, so the gradient of its part is at hand.

    It is taken `n_ranks` times, as `DistributedDataParallel` divides the sum over the ranks by that.
    """

    @staticmethod
    def forward(ctx: Any, part: Tensor, rank: int, n_ranks: int) -> Tensor:
        ctx.rank, ctx.n_ranks = rank, n_ranks
        part = part.contiguous()
        parts = [torch.empty_like(part) for _ in range(n_ranks)]
        distributed.all_gather(parts, part)
        return torch.stack(parts, dim=1).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0][ctx.rank :: ctx.n_ranks] * ctx.n_ranks, None, None


class _Mean(torch.autograd.Function):
    """Mean over the ranks; what each rank makes of it counts in its gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        del ctx
        total = value.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total / distributed.get_world_size()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _Mean.forward(ctx, gradients[0])


class _SharedBatchNorm(nn.BatchNorm2d):
    """Batch normalisation by the statistics of all ranks, which have equal shares; torch's own is for GPUs only."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        variance, mean = torch.var_mean(input.to(self.weight.dtype), dim=(0, 2, 3), correction=0)
        own_mean, mean = mean, cast(Tensor, _Mean.apply(mean))
        variance = cast(Tensor, _Mean.apply(variance + (own_mean - mean).square()))
        self._note(mean.detach(), variance.detach(), input.numel() // len(mean) * distributed.get_world_size())
        scale = self.weight * torch.rsqrt(variance + self.eps)
        shift = self.bias - mean * scale
        return (input * scale[:, None, None] + shift[:, None, None]).to(input.dtype)

    @torch.no_grad()
    def _note(self, mean: Tensor, variance: Tensor, n: int) -> None:
        """Take the statistics of a batch of `n` values a channel into the running ones."""
        momentum = cast(float, self.momentum)
        cast(Tensor, self.num_batches_tracked).add_(1)
        cast(Tensor, self.running_mean).lerp_(mean, momentum)
        cast(Tensor, self.running_var).lerp_(variance * n / max(n - 1, 1), momentum)


def _share_statistics(network: nn.Module) -> None:
    for name, child in network.named_children():
        if isinstance(child, nn.BatchNorm2d):
            shared = _SharedBatchNorm(child.num_features, child.eps, child.momentum).to(child.weight)
            shared.load_state_dict(child.state_dict())
            setattr(network, name, shared)
        else:
            _share_statistics(child)

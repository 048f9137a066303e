"""What a training run will show the network, before it is started: the sampler's plan, drawn and counted."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mitosis.config import TrainConfig
from mitosis.patches import MITOTIC, PatchIndex
from mitosis.sampling import SAMPLERS, Batches, Draw, PatchPool, epochs

__all__ = ["Plan", "PlanRow", "plan_run"]


@dataclass(frozen=True)
class PlanRow:
    """One class × domain, or a sum of several.

    Attributes
    ----------
    kind, domain : str
        `all` where they are summed.
    n_patches : int
        Patches there are.
    per_batch : float
        Mean number of them in a batch.
    repeats : float
        How often the first epoch shows one of them, on average.
    most_repeats : int
        How often the first epoch shows the one that it shows most often.
    seen_in_epoch, seen_in_run : float
        Share of them that the first epoch, and the whole run, show at least once.
    """

    kind: str
    domain: str
    n_patches: int
    per_batch: float
    repeats: float
    most_repeats: int
    seen_in_epoch: float
    seen_in_run: float


@dataclass(frozen=True)
class Plan:
    """What a run will show.

    Attributes
    ----------
    steps, batch_size, batches_an_epoch : int
    epochs : float
        Epochs of the run; a run may stop within its first.
    epochs_until_all_seen : int or None
        After how many epochs every patch without a figure has been shown; None if the run is too short for that.
    rows : tuple of PlanRow
        Each class × domain, then each class, then all.
    figure_repeats : dict
        How often the first epoch shows each patch with a figure, by its id.
    """

    sampler: str
    steps: int
    batch_size: int
    batches_an_epoch: int
    epochs: float
    epochs_until_all_seen: int | None
    rows: tuple[PlanRow, ...]
    figure_repeats: dict[str, int]


def plan_run(index: PatchIndex, config: TrainConfig) -> Plan:
    """Draw all batches of a run with the training patches `index`, and count. No image is read.

    Raises
    ------
    ConfigError
        There is no such sampler, or a batch is too small for it.
    """
    pool = PatchPool.of(index)
    run = [_flat(batches) for batches in epochs(pool, config)]
    epoch = SAMPLERS[config.sampler](pool, config, 0)
    shown = Counter(draw.row for draw in _flat(epoch))
    seen = {draw.row for draws in run for draw in draws}
    return Plan(
        sampler=config.sampler,
        steps=config.steps,
        batch_size=len(epoch[0]),
        batches_an_epoch=len(epoch),
        epochs=round(config.steps / len(epoch), 2),
        epochs_until_all_seen=_epochs_until_all_seen(pool, run),
        rows=tuple(_row(kind, domain, pool, shown, seen, len(epoch)) for kind, domain in _cells(pool)),
        figure_repeats={index.patches[row].patch_id: shown[row] for row in map(int, pool.rows(MITOTIC))},
    )


def _flat(batches: Batches) -> list[Draw]:
    return [draw for batch in batches for draw in batch]


def _cells(pool: PatchPool) -> list[tuple[str, str]]:
    both = sorted(set(zip(pool.kinds, pool.domains, strict=True)))
    classes = [(kind, "all") for kind in sorted(set(pool.kinds))]
    return [*(both if len(set(pool.domains)) > 1 else []), *classes, ("all", "all")]


def _row(kind: str, domain: str, pool: PatchPool, epoch: Counter[int], run: set[int], n_batches: int) -> PlanRow:
    members = [
        row
        for row, (its_kind, its_domain) in enumerate(zip(pool.kinds, pool.domains, strict=True))
        if kind in (its_kind, "all") and domain in (its_domain, "all")
    ]
    shown = [epoch[row] for row in members]
    return PlanRow(
        kind=kind,
        domain=domain,
        n_patches=len(members),
        per_batch=round(sum(shown) / n_batches, 3),
        repeats=round(sum(shown) / len(members), 3),
        most_repeats=max(shown),
        seen_in_epoch=round(sum(n > 0 for n in shown) / len(members), 4),
        seen_in_run=round(sum(row in run for row in members) / len(members), 4),
    )


def _epochs_until_all_seen(pool: PatchPool, run: Iterable[Sequence[Draw]]) -> int | None:
    unseen = {row for row, kind in enumerate(pool.kinds) if kind != MITOTIC}
    for number, epoch in enumerate(run, 1):
        unseen -= {draw.row for draw in epoch}
        if not unseen:
            return number
    return None

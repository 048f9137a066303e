"""``mitosis check-splits``."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mitosis.near_duplicates import NearDuplicate, Record

__all__ = ["check_splits"]


def check_splits(
    patches: Annotated[
        list[Path], typer.Argument(help="Folders that mitosis extract or mine wrote.", show_default=False)
    ],
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    max_pairs: Annotated[
        int, typer.Option("--max-pairs", min=1, help="Compare at most so many pairs of images in full.")
    ] = 500_000,
) -> None:
    """Say whether the same tissue is on both sides of the split, or in two cases.

    Images of different cases are compared; copies are found when re-encoded, mirrored, turned by quarter turns, shifted
    or resampled a little. Exit code 1: something is on both sides. Pairs within one side are warnings.

    Example: mitosis check-splits patches
    """
    import sys

    from rich.progress import track

    from mitosis.files import dump_json
    from mitosis.near_duplicates import count_pairs, find_near_duplicates, read_records
    from mitosis.patches import PatchIndex

    index = PatchIndex.join([PatchIndex.read(folder) for folder in patches])
    index.check_splits()
    n_slides = len({patch.slide_id for patch in index.patches})
    slides = track(read_records(index), "slides", total=n_slides, disable=not sys.stderr.isatty())
    records = [record for parts in slides for record in parts]
    found = find_near_duplicates(records, max_pairs)
    n_pairs = count_pairs(records)
    n_left = max(0, n_pairs - max_pairs)
    if json:
        typer.echo(dump_json(_summary(records, found, n_pairs, n_left)), nl=False)
    else:
        _tell(records, found, n_pairs, n_left)
    raise typer.Exit(int(any(pair.crosses_split for pair in found)))


def _summary(
    records: "Sequence[Record]", found: "Sequence[NearDuplicate]", n_pairs: int, n_left: int
) -> dict[str, Any]:
    pairs = [
        {
            "crosses_split": pair.crosses_split,
            "first": {"slide": pair.first.name, "case": pair.first.case, "split": pair.first.split},
            "second": {"slide": pair.second.name, "case": pair.second.case, "split": pair.second.split},
            "how": pair.how,
            "similarity": round(pair.similarity, 3),
            "overlap": round(pair.overlap, 3),
        }
        for pair in found
    ]
    n_slides = len({record.name for record in records})
    return {"n_slides": n_slides, "n_pairs": n_pairs, "n_pairs_by_hash_only": n_left, "near_duplicates": pairs}


def _tell(records: "Sequence[Record]", found: "Sequence[NearDuplicate]", n_pairs: int, n_left: int) -> None:
    """Print a table of what was found, and what was compared."""
    if found:
        rows: list[tuple[str, ...]] = [
            ("", "first", "case", "split", "second", "case", "split", "alike", "overlap", "how")
        ]
        rows += [_row(pair) for pair in found]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    cases = {record.case: record.split for record in records}
    sides = Counter(cases.values())
    n_cases = ", ".join(f"{number} {split}" for split, number in sorted(sides.items()))
    n_slides = len({record.name for record in records})
    typer.echo(f"{n_slides} slides of {len(cases)} cases ({n_cases}), {n_pairs} pairs of images of different cases.")
    if n_left:
        typer.echo(
            f"Warning: {n_left} of the pairs were compared by hash only, which finds copies of whole images but not "
            "shifted ones. Raise --max-pairs to compare more.",
            err=True,
        )
    n_errors = sum(pair.crosses_split for pair in found)
    if found:
        typer.echo(f"{n_errors} pairs cross the split, {len(found) - n_errors} do not. Give each pair one case name.")
    else:
        typer.echo("No near copies.")


def _row(pair: "NearDuplicate") -> tuple[str, ...]:
    sides = (text for side in (pair.first, pair.second) for text in (side.name, side.case, side.split))
    kind = "error" if pair.crosses_split else "warning"
    return (kind, *sides, f"{pair.similarity:.2f}", f"{pair.overlap:.0%}", pair.how)

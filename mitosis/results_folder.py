"""The folder of a run's results: what is in it already, and what decided that."""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mitosis.errors import ConfigError, OutputError
from mitosis.files import make_folder
from mitosis.report import write_summary

__all__ = ["ResultsFolder"]

_IDLE = frozenset(["batch_size", "engine", "tile_size", "workers"])
"""Settings that change no count. Of the engine it matters what ran, not what was asked for, and that is noted."""

_FILES = ("detections.csv", "detections.geojson", "overlay.png", "count.json")


@dataclass(frozen=True)
class ResultsFolder:
    """The folder of results.

    Attributes
    ----------
    before : dict
        Counts by the same model and settings that were there, by slide.
    rows : dict
        Rows of the summary, by slide.
    """

    out: Path
    before: dict[str, Mapping[str, Any]]
    rows: dict[str, Mapping[str, Any]]

    @classmethod
    def take_over(cls, out: Path, provenance: Mapping[str, Any], *, overwrite: bool = False) -> "ResultsFolder":
        """Make the folder, or look at what is in it.

        Parameters
        ----------
        provenance : mapping
            What the reports of this run will say of what made them, by the names of `CountReport`.
        overwrite : bool
            Counts that something else decided are to be replaced.

        Raises
        ------
        ConfigError
            There are such counts, and they are not to be replaced.
        OutputError
            The folder cannot be made or written to.
        """
        make_folder(out)
        before, decided_by = {}, _decided_by(provenance)
        for name, content in _counts_in(out):
            then = _decided_by(content)
            changed = [
                f"{key} {_short(then.get(key))} → {_short(now)}"
                for key, now in decided_by.items()
                if then.get(key) != now
            ]
            if not changed:
                before[name] = content
            elif not overwrite:
                raise ConfigError(
                    f"{out}: holds results of other settings: {name} was counted with {', '.join(changed)}. "
                    "Choose another --out, or add --overwrite to replace them."
                )
        return cls(out, before, dict(before))

    def forget(self, name: str) -> None:
        """Delete the count of a slide: if the slide fails now, an old one must not stand for it.

        Raises
        ------
        OutputError
            The file cannot be deleted.
        """
        try:
            (self.out / name / "count.json").unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"{self.out / name}: an old count.json cannot be deleted ({error.strerror}).") from error
        self.rows.pop(name, None)

    def write_summary(self) -> None:
        """A row for each slide that is done, and for each that an earlier run had counted."""
        write_summary(self.out / "summary.csv", self.rows.values())


def _counts_in(out: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Slide and content of each finished ``count.json``; a folder that was copied or renamed is none of its slide."""
    for path in sorted(out.glob("*/count.json")):
        with suppress(OSError, ValueError, RecursionError):  # what cannot be read is not finished
            content = json.loads(path.read_text(encoding="utf-8"))
            name = path.parent.name
            is_own = isinstance(content, dict) and content.get("slide", name) == name
            if is_own and all((path.parent / file).is_file() for file in _FILES):
                yield name, {"slide": name, **content}


def _decided_by(content: Mapping[str, Any]) -> dict[str, Any]:
    """What of a report decides counts, whatever the slide."""
    settings, ran = (_mapping(content.get(name)) for name in ("settings", "versions"))
    return {f"count.{key}": value for key, value in settings.items() if key not in _IDLE} | {
        "model": content.get("model_sha256"),
        "second stage": content.get("verifier_sha256"),
        "model card": content.get("card_sha256"),
        "engine": ran.get("engine"),
        "version": ran.get("mitosis-toolkit"),
    }


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _short(value: Any) -> str:
    """A value in a message; twelve digits of a sha256 tell two apart."""
    text = str(value)
    return (text[:12] if len(text) == 64 else text) or "none"

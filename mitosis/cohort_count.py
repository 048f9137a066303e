"""Many slides counted into one folder: what is done is kept, and not done again.

The count of a slide holds all that decided it: file, model, settings. So the same command given again takes over what
it finds finished and counts the rest, and ends with the same bytes as a run that nothing stopped.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mitosis.cohort import SlideSource
from mitosis.config import CountConfig
from mitosis.counting import CountReport
from mitosis.errors import AnnotationError, ConfigError, MitosisError, SlideError
from mitosis.files import sha256, sole_writer
from mitosis.inference import StartedSlide, finish_slide, judge_candidates, start_slide
from mitosis.regions import region_at
from mitosis.report import write_report
from mitosis.results_folder import ResultsFolder
from mitosis.slides import open_slide
from mitosis.tile_search import Finder, Judge, Model, check_tile_size, find_in_tiles

__all__ = ["Progress", "SlideResult", "count_slides"]


@dataclass(frozen=True)
class SlideResult:
    """What came of one slide of many.

    Attributes
    ----------
    report : CountReport or None
        None if the slide failed or had been counted before.
    error : str
        Why it failed.
    before : mapping or None
        What ``count.json`` holds if an earlier run counted the slide.
    """

    name: str
    report: CountReport | None = None
    error: str = ""
    before: Mapping[str, Any] | None = None

    @property
    def status(self) -> str:
        """`ok`, `degraded`, `no_tissue` or `failed`."""
        return str(self.to_dict()["status"])

    def to_dict(self) -> Mapping[str, Any]:
        """A row of the summary."""
        if self.report:
            return self.report.to_dict()
        return self.before or {"slide": self.name, "status": "failed", "error": self.error}


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is.

    Attributes
    ----------
    slide : str
        The one in work.
    n_slides, n_done, n_before : int
        All slides; those that are done; those of them that an earlier run had counted.
    part : float
        How much of the slide in work is done, 0..1.
    counted_mm2 : float
        Tissue that this run has looked at.
    """

    slide: str
    n_slides: int
    n_done: int = 0
    n_before: int = 0
    part: float = 0.0
    counted_mm2: float = 0.0


def count_slides(
    sources: Sequence[SlideSource],
    model: Model,
    out: Path,
    config: CountConfig,
    *,
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] = lambda _progress: None,
    find: Finder = find_in_tiles,
    judge: Judge = judge_candidates,
    ahead: int = 0,
) -> Iterator[SlideResult]:
    """Count slide after slide into ``out/SLIDE/``; a bad slide stops no other.

    ``out/summary.csv`` is written after every slide. A slide is not counted again if `out` holds its count by the same
    model and settings, unless its file, region of interest, case, domain or µm/px is another now.

    Parameters
    ----------
    overwrite : bool
        Replace counts by other settings or another model.
    on_progress : callable
        Told after each batch of tiles and after each slide.
    find : Finder
        Looks at the tiles of a slide.
    judge : Judge
        Looks again at what is found, where the model has a second stage.
    ahead : int
        How many further slides are started while one is waited for; more than 0 pays if `find` and `judge` work
        elsewhere.

    Raises
    ------
    ConfigError
        `out` holds counts by other settings or another model and `overwrite` is not set; `tile_size` does not fit the
        network; the threshold is below `score_floor`.
    OutputError
        `out` cannot be written to, or another command is writing there.
    """
    check_tile_size(model, config)
    _check_threshold(model, config)
    waiting: deque[_Job] = deque()
    with sole_writer(out):
        results = ResultsFolder.take_over(out, model.provenance(config), overwrite=overwrite)
        run = _Run(model, config, results, find, judge)
        run.progress, run.on_progress = Progress("", len(sources)), on_progress
        try:
            for source in sources:
                waiting.append(_Job(source, SlideResult(source.slide_id)))
                run.start(waiting[-1])
                if len(waiting) > ahead:
                    yield run.finish(waiting.popleft())
            while waiting:
                yield run.finish(waiting.popleft())
            run.results.write_summary()
        finally:
            for job in waiting:
                job.opened.close()


def _check_threshold(model: Model, config: CountConfig) -> None:
    """What scores less than `score_floor` is not there to be counted, whatever the threshold."""
    verified = model.second_card(config) is not None
    threshold = config.threshold or model.card.threshold_for(config.objective, verified=verified)
    if threshold < config.score_floor:
        raise ConfigError(
            f"count.score_floor = {config.score_floor:g} is above the threshold, {threshold:g}, so candidates that "
            f"count would be left out. Set count.score_floor to {threshold:g} or less."
        )


@dataclass
class _Job:
    """A slide in work."""

    source: SlideSource
    result: SlideResult
    opened: ExitStack = field(default_factory=ExitStack)
    started: StartedSlide | None = None
    sha256: str = ""


@dataclass
class _Run:
    """One run over many slides."""

    model: Model
    config: CountConfig
    results: ResultsFolder
    find: Finder
    judge: Judge
    progress: Progress = Progress("", 0)
    on_progress: Callable[[Progress], None] = lambda _progress: None

    def start(self, job: _Job) -> None:
        """Open a slide and let the finder begin, unless its count is there."""
        source = job.source
        with self._noting_failure(job):
            slide = job.opened.enter_context(open_slide(source.path, source.mpp))
            region = region_at(source.region)
            job.sha256 = sha256(source.path)
            own = {
                "slide_mpp": slide.mpp,
                "case_id": source.case_id,
                "domain": source.domain,
                "source_sha256": job.sha256,
                "region_sha256": region.sha256 if region else "",
            }
            before = self.results.before.get(source.slide_id)
            if before and all(before.get(key) == value for key, value in own.items()):
                job.result = SlideResult(source.slide_id, before=before)
            else:
                self.results.forget(source.slide_id)
                job.started = start_slide(slide, self.model, self.config, region, self.find, judge=self.judge)

    def finish(self, job: _Job) -> SlideResult:
        """Write what came of a slide."""
        name = job.source.slide_id
        with job.opened, self._noting_failure(job):
            if job.started is not None:
                job.result = SlideResult(name, self._count(job, job.started))
        self.results.rows[name] = job.result.to_dict()
        if job.result.before is None:
            self.results.write_summary()
        done, before = self.progress.n_done + 1, self.progress.n_before + (job.result.before is not None)
        self.progress = replace(self.progress, slide=name, n_done=done, n_before=before, part=0.0)
        self.on_progress(self.progress)
        return job.result

    def _count(self, job: _Job, started: StartedSlide) -> CountReport:
        source, card, before = job.source, self.model.card, self.progress

        def on_tiles(done: int, n: int) -> None:
            area = before.counted_mm2 + started.tissue.area_mm2 * done / n
            self.progress = replace(before, slide=source.slide_id, part=done / n, counted_mm2=area)
            self.on_progress(self.progress)

        counted = finish_slide(started, source.slide_id, self.model, self.config, job.sha256, on_tiles)
        report = replace(
            counted.report,
            case_id=source.case_id,
            domain=source.domain,
            seen_in_training=card.has_seen(source.case_id, job.sha256),
            training_cases=tuple(card.training.get("cases", ())),
        )
        write_report(self.results.out / source.slide_id, started.slide, report, counted.candidates, counted.tissue)
        return report

    @contextmanager
    def _noting_failure(self, job: _Job) -> Iterator[None]:
        """What goes wrong with a slide is its result; what would go wrong with every slide is raised."""
        try:
            yield
        except (SlideError, AnnotationError) as error:
            reason = str(error)
        except MitosisError:
            raise
        except Exception as error:  # a file can be broken in ways that nobody has thought of
            reason = " ".join(f"{job.source.path}: {type(error).__name__}: {error}".split())
        else:
            return
        self.results.forget(job.source.slide_id)
        job.result, job.started = SlideResult(job.source.slide_id, error=reason), None

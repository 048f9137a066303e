"""Leave cases out: every case is counted by a model that never saw it, and the results are pooled.

Example: python scripts/cross_validate.py patches fields --annotations fields --mpp 0.2456 --out cv

Patches come from ``mitosis extract``; SLIDES are the images they were cut from. For each case a model is trained on the
others, of which the one with the fewest figures (but at least 20, if there is such a one) chooses the best step and the
threshold of the model card. Results are given at that threshold, and at one chosen on the out-of-fold scores of all
cases but the one scored. A run that was stopped goes on where it was when the command is given again.

With ``--models CV`` nothing is trained: the slides (of the same cases on another scanner, say) are counted with the
models that an earlier cross-validation left in CV, each case with the model that did not see it.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from mitosis.checkpoints import load_model
from mitosis.cohort import SlideSource, find_sources
from mitosis.config import Config, load_config
from mitosis.evaluation import SlideScores, choose_threshold, evaluate
from mitosis.inference import Model, count_slides
from mitosis.matching import MatchResult
from mitosis.patches import PatchIndex
from mitosis.report import ScoredSlide, read_scores
from mitosis.training import Metrics, train


def main() -> None:
    """Train where need be, count, and print a table."""
    arguments = _arguments()
    config = load_config(None, tuple(arguments.set))
    sources = find_sources(arguments.slides, case_pattern=arguments.case_pattern, mpp=arguments.mpp)
    cases = arguments.cases or sorted({source.case_id for source in sources})
    models = arguments.models or arguments.out
    if not arguments.models:
        index = PatchIndex.read(arguments.patches)
        for case in cases:
            _train_without(case, index, models / f"without-{case}", config)
    counted = {}
    for case in cases:
        out = arguments.out / "results" / case
        _count([source for source in sources if source.case_id == case], _model_for(case, models), out, config)
        counted[case] = [read_scores(path.parent, arguments.annotations) for path in sorted(out.glob("*/count.json"))]
    _print_tables(counted)


def _train_without(case: str, index: PatchIndex, run: Path, config: Config) -> None:
    if (run / "done.json").exists():
        return
    others = index.where(lambda patch: patch.case_id != case)
    figures: dict[str, int] = defaultdict(int)
    for patch in others.patches:
        figures[patch.case_id] += patch.n_mitotic if patch.on_grid else 0
    validation = min(figures, key=lambda name: (figures[name] < 20, figures[name], name))

    def report(metrics: Metrics) -> None:
        print(f"without {case}: {metrics}", flush=True)

    resume = (run / "settings.yaml").exists()
    train(others.with_val_cases([validation]), run, config, resume=resume, on_metrics=report)
    (run / "done.json").write_text(json.dumps({"left_out": case, "validation": validation}))


def _model_for(case: str, models: Path) -> Path:
    """The model trained without this case; for a case that none has seen, the first one."""
    own = models / f"without-{case}"
    return own if own.exists() else min(path for path in models.glob("without-*") if (path / "done.json").exists())


def _count(sources: list[SlideSource], model: Path, out: Path, config: Config) -> None:
    for result in count_slides(sources, Model.of(*load_model(model)), out, config.count, overwrite=True):
        print(result.name, result.report.mitotic_count if result.report else result.error, flush=True)


def _print_tables(counted: dict[str, list[ScoredSlide]]) -> None:
    own, crossed = MatchResult(), MatchResult()
    print("\ncase  figures   at the card's threshold                at one chosen on the other cases")
    for case, scored in counted.items():
        slides = _of(scored)
        others = [scores for name, rest in counted.items() if name != case for scores in _of(rest)]
        by_card = evaluate(slides, scored[0].threshold).pooled
        threshold = choose_threshold(others) if others else scored[0].threshold
        by_others = evaluate(slides, threshold).pooled
        n_figures = by_card.tp + by_card.fn
        print(f"{case:<5} {n_figures:>7}   {_row(scored[0].threshold, by_card)}   {_row(threshold, by_others)}")
        own, crossed = own + by_card, crossed + by_others
    print(f"{'all':<5} {own.tp + own.fn:>7}   {_row(None, own)}   {_row(None, crossed)}")
    everything = [scores for scored in counted.values() for scores in _of(scored)]
    print(f"best possible threshold for all (not honest): F1 {_best(everything).f1:.3f}")


def _of(scored: Sequence[ScoredSlide]) -> list[SlideScores]:
    return [slide.scores for slide in scored]


def _best(slides: Sequence[SlideScores]) -> MatchResult:
    return evaluate(slides, choose_threshold(slides)).pooled


def _row(threshold: float | None, result: MatchResult) -> str:
    at = "      " if threshold is None else f"{threshold:.4f}"
    return (
        f"{at} P {result.precision:.3f} R {result.recall:.3f} F1 {result.f1:.3f} ({result.tp}/{result.fp}/{result.fn})"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patches", type=Path)
    parser.add_argument("slides", type=Path, nargs="+")
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", type=Path)
    parser.add_argument("--mpp", type=float)
    parser.add_argument("--case-pattern")
    parser.add_argument("--cases", nargs="*", help="only these cases")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    return parser.parse_args()


if __name__ == "__main__":
    main()

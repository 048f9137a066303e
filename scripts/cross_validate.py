"""Leave cases out: every case is counted by a model that never saw it, and the results are pooled.

Example: python scripts/cross_validate.py patches fields --annotations fields --mpp 0.2456 --out cv

Patches come from ``mitosis extract``; SLIDES are the images they were cut from. For each case a model is trained on all
others, to its last step: no case is spent on choosing a better one. The threshold of a case is chosen on the
out-of-fold scores of the other cases. A command that was stopped goes on with the next case when it is given again.

With ``--models CV`` nothing is trained: the slides (of the same cases on another scanner, say) are counted with the
models that an earlier cross-validation left in CV, each case with the model that did not see it, and the results are
also given at ``--threshold``, the one that was chosen on all cases of CV.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from mitosis.checkpoints import load_model
from mitosis.cohort import SlideSource, find_sources
from mitosis.cohort_count import count_slides
from mitosis.config import Config, load_config
from mitosis.counted import ScoredSlide, read_scores
from mitosis.evaluation import choose_threshold, cross_thresholds, evaluate
from mitosis.inference import Model
from mitosis.matching import MatchResult
from mitosis.patches import PatchIndex
from mitosis.ranking import DetectionCurve, SlideScores
from mitosis.training import train


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
    if arguments.threshold:
        _print_at(counted, arguments.threshold)


def _train_without(case: str, index: PatchIndex, run: Path, config: Config) -> None:
    if (run / "done.json").exists():
        return
    others = index.where(lambda patch: patch.case_id != case).with_val_cases([])
    last = config.train.model_copy(update={"validate_every": config.train.steps})

    def report(step: int, loss: float) -> None:
        if step % 100 == 0:
            print(f"without {case}: step {step}, loss {loss:.3f}", flush=True)

    resume = (run / "settings.yaml").exists()
    train(others, run, config.model_copy(update={"train": last}), resume=resume, on_step=report)
    (run / "done.json").write_text(json.dumps({"left_out": case}))


def _model_for(case: str, models: Path) -> Path:
    """The model trained without this case; for a case that none has seen, the first one."""
    own = models / f"without-{case}"
    return own if own.exists() else min(path for path in models.glob("without-*") if (path / "done.json").exists())


def _count(sources: list[SlideSource], model: Path, out: Path, config: Config) -> None:
    for result in count_slides(sources, Model.of(*load_model(model)), out, config.count, overwrite=True):
        print(result.name, result.to_dict().get("mitotic_count", result.error), flush=True)


def _print_tables(counted: dict[str, list[ScoredSlide]]) -> None:
    everything = [scores for scored in counted.values() for scores in _of(scored)]
    thresholds = cross_thresholds(everything)
    pooled = MatchResult()
    print("\ncase  figures  threshold chosen on the other cases")
    for case, scored in counted.items():
        result = evaluate(_of(scored), thresholds[case]).pooled
        pooled += result
        best = _best(_of(scored))
        print(f"{case:<5} {result.tp + result.fn:>7}  {thresholds[case]:.4f} {_row(result)}, best possible {best:.3f}")
    print(f"all   {pooled.tp + pooled.fn:>7}         {_row(pooled)}, best possible {_best(everything):.3f}")
    average_precision = DetectionCurve.of(everything).average_precision
    print(f"chosen on all: {choose_threshold(everything):.4f}; average precision {average_precision:.3f}")


def _print_at(counted: dict[str, list[ScoredSlide]], threshold: float) -> None:
    pooled = MatchResult()
    print(f"\nat {threshold}")
    for case, scored in counted.items():
        evaluation = evaluate(_of(scored), threshold)
        pooled += evaluation.pooled
        print(f"{case:<5} {_row(evaluation.pooled)}, {evaluation.on_look_alikes} of the false positives on look-alikes")
    print(f"all   {_row(pooled)}")


def _of(scored: Sequence[ScoredSlide]) -> list[SlideScores]:
    return [slide.scores for slide in scored]


def _best(slides: Sequence[SlideScores]) -> float:
    """F1 at the best threshold for these very slides: what no honest choice can reach."""
    return evaluate(slides, choose_threshold(slides)).pooled.f1


def _row(result: MatchResult) -> str:
    return f"P {result.precision:.3f} R {result.recall:.3f} F1 {result.f1:.3f} ({result.tp}/{result.fp}/{result.fn})"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patches", type=Path)
    parser.add_argument("slides", type=Path, nargs="+")
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", type=Path)
    parser.add_argument("--threshold", type=float)
    parser.add_argument("--mpp", type=float)
    parser.add_argument("--case-pattern")
    parser.add_argument("--cases", nargs="*", help="only these cases")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    return parser.parse_args()


if __name__ == "__main__":
    main()

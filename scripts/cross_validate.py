"""Leave cases out: every case is counted by a model that never saw it, and the results are pooled.

Example: python scripts/cross_validate.py patches fields --annotations fields --mpp 0.2456 --out cv

Patches come from ``mitosis extract``; SLIDES are the images they were cut from. For each case a model is trained on the
others, of which the one with the fewest figures (but at least 20, if there is such a one) chooses the best step and the
threshold. ``--predict`` counts further slides of other origin, each with the model that saw least of its case. A run
that was stopped goes on where it was when the command is given again.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

from mitosis.checkpoints import load_model
from mitosis.cohort import SlideSource, find_sources
from mitosis.config import Config, load_config
from mitosis.inference import Model, count_slides
from mitosis.patches import PatchIndex
from mitosis.training import Metrics, train


def main() -> None:
    """Train, count and say where the results are."""
    arguments = _arguments()
    config = load_config(None, tuple(arguments.set))
    index = PatchIndex.read(arguments.patches)
    sources = find_sources(arguments.slides, case_pattern=arguments.case_pattern, mpp=arguments.mpp)
    results = arguments.out / "results"
    for case in arguments.cases or index.cases:
        run = arguments.out / f"without-{case}"
        if not (run / "done.json").exists():
            _train_without(case, index, run, config)
        _count([source for source in sources if source.case_id == case], run, results / case, config)
    print(f"Score them: mitosis evaluate {results}/CASE ANNOTATIONS, or all cases: mitosis evaluate {results} ...")


def _train_without(case: str, index: PatchIndex, run: Path, config: Config) -> None:
    others = index.where(lambda patch: patch.case_id != case)
    figures: dict[str, int] = defaultdict(int)
    for patch in others.patches:
        figures[patch.case_id] += patch.n_mitotic if patch.on_grid else 0
    validation = min(figures, key=lambda name: (figures[name] < 20, figures[name], name))
    others = others.with_val_cases([validation])

    def report(metrics: Metrics) -> None:
        print(f"without {case}: {metrics}", flush=True)

    train(others, run, config, resume=(run / "settings.yaml").exists(), on_metrics=report)
    (run / "done.json").write_text(json.dumps({"left_out": case, "validation": validation}))


def _count(sources: list[SlideSource], run: Path, out: Path, config: Config) -> None:
    model = Model.of(*load_model(run))
    for result in count_slides(sources, model, out, config.count, overwrite=True):
        print(result.name, result.status, result.report.mitotic_count if result.report else result.error, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patches", type=Path)
    parser.add_argument("slides", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--mpp", type=float)
    parser.add_argument("--case-pattern")
    parser.add_argument("--cases", nargs="*", help="only these cases")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""The scripts that people start with."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts"


def test_ci_calls_the_one_check() -> None:
    assert "python3 scripts/check.py" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("name", ["check", "demo", "environment"])
def test_what_starts_on_a_bare_python_imports_the_standard_library_only(name: str) -> None:
    tree = ast.parse((SCRIPTS / f"{name}.py").read_text(encoding="utf-8"))
    imported = {
        alias.name.split(".")[0]
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
        if isinstance(node, ast.Import)
    } | {node.module.split(".")[0] for node in tree.body if isinstance(node, ast.ImportFrom) and node.module}
    assert imported <= sys.stdlib_module_names | {"environment"}


@pytest.mark.parametrize(
    ("script", "verb"), [("extract_patches", "extract"), ("train", "train"), ("count_mitoses", "count")]
)
def test_a_script_is_its_verb(script: str, verb: str) -> None:
    environment = os.environ | {"COLUMNS": "120"}
    calls = ([str(SCRIPTS / f"{script}.py"), "--help"], ["-m", "mitosis", verb, "--help"])
    by_script, by_verb = (
        subprocess.run([sys.executable, *call], capture_output=True, text=True, check=True, env=environment).stdout
        for call in calls
    )
    assert by_script.split("\n", 2)[2] == by_verb.split("\n", 2)[2]
    assert f"{verb} [OPTIONS]" in by_script


def test_cross_validation_says_how_it_is_used() -> None:
    done = subprocess.run(
        [sys.executable, SCRIPTS / "cross_validate.py", "--help"], capture_output=True, text=True, check=True
    )
    assert "--case-pattern" in done.stdout


@pytest.mark.slow
def test_the_demonstration_finds_the_figures_of_a_slide_it_never_saw(tmp_path: Path) -> None:
    if Path(sys.prefix).resolve() != (ROOT / ".venv").resolve():
        pytest.skip("the demonstration sets up .venv itself; run the tests by scripts/check.py")
    out = tmp_path / "demo"
    subprocess.run([sys.executable, SCRIPTS / "demo.py", out], capture_output=True, text=True, check=True)
    words = ["-m", "mitosis", "evaluate", out / "results", out / "truth", "--json"]
    scored = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True)
    assert json.loads(scored.stdout)["pooled"]["f1"] >= 0.9
    assert (out / "results" / "phantom" / "overlay.png").stat().st_size > 10_000


def test_the_demonstration_clears_nothing_but_its_own(tmp_path: Path) -> None:
    if Path(sys.prefix).resolve() != (ROOT / ".venv").resolve():
        pytest.skip("the demonstration sets up .venv itself; run the tests by scripts/check.py")
    (tmp_path / "mine.txt").write_text("mine")
    done = subprocess.run([sys.executable, SCRIPTS / "demo.py", tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "not from an earlier demonstration" in done.stderr
    assert (tmp_path / "mine.txt").read_text() == "mine"

"""The house: names, doors and sizes that CONTRIBUTING.md promises."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import mitosis

PACKAGE = Path(mitosis.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = [
    ".".join(["mitosis", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")
    for path in FILES
    if path.name != "__main__.py"
]
HEAVY = ("torch", "numpy", "scipy", "pydantic", "matplotlib", "typer")


def test_the_package_is_seen_whole():
    assert {"mitosis", "mitosis.training", "mitosis.slides.tiff", "mitosis.cli"} <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_the_public_names_of_a_module_are_there_and_sorted(name):
    """Constants, then classes, then the rest, each from a to z."""
    module = import_module(name)
    names = module.__all__
    assert list(names) == sorted(names, key=lambda n: (0 if n.isupper() else 1 if n[0].isupper() else 2, n))
    assert len(set(names)) == len(names)
    assert [public for public in names if not hasattr(module, public)] == []


@pytest.mark.parametrize("name", MODULES)
def test_a_module_says_what_it_is(name):
    assert import_module(name).__doc__


def test_the_face_of_the_package_is_its_table_of_rooms():
    assert sorted(mitosis.__all__) == sorted(mitosis._ROOMS)
    assert dir(mitosis) == sorted(mitosis.__all__)
    for name, room in mitosis._ROOMS.items():
        module = import_module(f"mitosis.{room}")
        assert name in module.__all__
        assert getattr(mitosis, name) is getattr(module, name)
    with pytest.raises(AttributeError, match="no attribute 'mitoses'"):
        _ = mitosis.mitoses


def test_importing_the_package_loads_nothing_heavy():
    code = f"import sys, mitosis; print([name for name in {HEAVY!r} if name in sys.modules])"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout == "[]\n"


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(PACKAGE)) for path in FILES])
def test_a_file_fits_on_a_few_screens_and_a_function_on_one(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
            assert body[-1].end_lineno - body[0].lineno < 40, node.name


def test_no_file_has_a_name_that_says_nothing():
    empty = {"utils", "helpers", "common", "base", "types", "manager", "handler"}
    assert [str(path) for path in PACKAGE.rglob("*") if path.stem.strip("_") in empty] == []


def test_no_pool_that_hangs_when_a_worker_is_killed_and_nothing_that_unpickles():
    """`multiprocessing.Pool.map` waits for ever for a worker that the system has killed."""
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        for banned in ("multiprocessing.Pool", "multiprocessing.pool", "import Pool", ").Pool(", "import pickle"):
            assert banned not in text, f"{path.name}: {banned}"


def test_torch_stays_above_the_floor_of_learning():
    above = {"augment", "checkpoints", "dataset", "engines", "export", "inference", "losses", "runtime", "sampling"}
    above |= {"auxiliary", "candidate_batches", "descent", "distributed", "folding", "learner", "loading", "looks"}
    above |= {"openvino_runner", "quantization", "rebalance", "second_engine", "training", "unet", "validation"}
    above |= {"symmetry", "verification", "verifier"}
    for path in FILES:
        names = {
            name.split(".")[0]
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
        }
        assert "torch" not in names or path.stem in above, path.name

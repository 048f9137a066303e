"""README is true: every command in it runs, and so does its Python."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line[2:] for block in re.findall(r"```console\n(.*?)```", README, re.S) for line in block.splitlines()]
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.S)
MODULES = {"mitosis": "mitosis", "torchrun": "torch.distributed.run"}
# Settings that make a run of seconds of one of minutes; the words of the README stay as they are.
QUICK = {
    "train": "train.steps=4 train.warmup_steps=1 train.validate_every=4 train.batch_size=2 network.width=2",
    "verify": "verifier.steps=2 verifier.batch_size=4 verifier.width=2",
}


def test_the_first_two_commands_are_demo_and_check() -> None:
    assert COMMANDS[:2] == ["python scripts/demo.py", "python scripts/check.py"]


@pytest.mark.slow
def test_every_verb_and_the_python_run_one_after_the_other(tmp_path: Path) -> None:
    (tmp_path / "sample_patches").symlink_to(ROOT / "sample_patches")
    for folder in ("slides", "truth"):
        (tmp_path / folder).mkdir()
    draw = SNIPPETS[0].split("model = ")[0]
    _run([sys.executable, "-c", draw], tmp_path)
    commands = [shlex.split(command) for command in COMMANDS[2:]]
    verbs = [words[words.index("mitosis") + 1] for words in commands]
    assert set(verbs) == {
        "info",
        "lint",
        "extract",
        "check-splits",
        "train",
        "mine",
        "verify",
        "count",
        "evaluate",
        "models",
        "export",
    }
    for verb, (program, *words) in zip(verbs, commands, strict=True):
        quick = [word for setting in QUICK.get(verb, "").split() for word in ("--set", setting)]
        _run([sys.executable, "-m", MODULES[program], *words, *quick], tmp_path)
    assert "mitotic figures in" in _run([sys.executable, "-c", SNIPPETS[0]], tmp_path)


def _run(words: list[str], folder: Path) -> str:
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout

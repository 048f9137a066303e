"""Makes ``.venv`` and installs the project into it; needs nothing but Python itself. For check.py and demo.py."""

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".venv"
PYTHON = FOLDER / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def run_inside() -> None:
    """Go on in the project's environment: make it if need be, then run this very command again with its Python."""
    if sys.version_info < (3, 11):  # noqa: UP036 (this file starts with whatever Python there is)
        sys.exit(f"Python 3.11 or newer is needed; this is {sys.version.split()[0]}.")
    if Path(sys.prefix).resolve() == FOLDER.resolve():
        return
    _install()
    sys.exit(subprocess.run([PYTHON, *sys.argv], check=False).returncode)


def _install() -> None:
    """Install once, and again when pyproject.toml has changed."""
    stamp = FOLDER / "installed.txt"
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    if PYTHON.exists() and stamp.exists() and stamp.read_text() == wanted:
        return
    print(f"Setting up {FOLDER.name} (once; PyTorch is large, so this takes some minutes) ...", flush=True)
    if not PYTHON.exists():
        venv.create(FOLDER, with_pip=True)
    command = [
        str(PYTHON),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--editable",
        f"{ROOT}[dev]",
    ]
    if subprocess.run(command, check=False).returncode:
        sys.exit("The installation failed; what pip said stands above. Check the network and run this again.")
    stamp.write_text(wanted)

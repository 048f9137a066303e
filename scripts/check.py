"""All checks, with nothing but Python to start from: format, lint, types, floors of the house, sample patches, tests.

``--fast`` is for the inner loop: it leaves out the slow tests. Further arguments go to pytest.
"""

import subprocess
import sys
import time

import environment

CHECKS = {
    "format": ["ruff", "format", "--check", "--quiet", "."],
    "lint": ["ruff", "check", "--quiet", "."],
    "types": ["mypy"],
    "floors": ["importlinter.cli", "lint"],
    "sample patches": ["scripts/make_sample_patches.py", "--check"],
    "tests": ["pytest", "-n", "auto", "--dist", "worksteal"],
}


def main() -> int:
    """Run every check, also after one failed; gives the exit code."""
    environment.run_inside()
    arguments = sys.argv[1:]
    fast = "--fast" in arguments
    tests = [*(["-m", "not slow"] if fast else []), *(argument for argument in arguments if argument != "--fast")]
    failed = []
    for name, command in CHECKS.items():
        start = time.perf_counter()
        print(f"── {name}", flush=True)
        call = command if command[0].endswith(".py") else ["-m", *command]
        call = [sys.executable, *call, *(tests if name == "tests" else [])]
        if subprocess.run(call, cwd=environment.ROOT, check=False).returncode:
            failed.append(name)
        print(f"   {'FAILED' if name in failed else 'ok'} in {time.perf_counter() - start:.0f} s", flush=True)
    print(f"Failed: {', '.join(failed)}." if failed else "All checks passed.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""A Python 3.7 with MindSpore Lite 2.0.0, the newest that the package index has.

    python tests/adapters/lite/install.py FOLDER

makes FOLDER/bin/python, unless it is there. Prints one line; on failure it says what to do.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

LITE = "mindspore-lite==2.0.0"
ADVICE = "install CPython 3.7 (pyenv install 3.7), so that python3.7 is on PATH, and run again"


def candidates() -> Iterator[Path]:
    """Where a Python 3.7 may be: PATH, then what pyenv and uv have installed."""
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        yield Path(folder) / "python3.7"
    home = Path.home()
    yield from sorted(
        Path(os.environ.get("PYENV_ROOT") or home / ".pyenv").glob("versions/3.7.*/bin/python3.7")
    )
    yield from sorted((home / ".local/share/uv/python").glob("cpython-3.7.*/bin/python3.7"))


def runs(python: Path, program: str) -> bool:
    """Whether an interpreter is there and runs a program well. A shim of pyenv may not."""
    try:
        done = subprocess.run([python, "-I", "-c", program], capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def main() -> None:
    """Find, make, install."""
    folder = Path(sys.argv[1])
    python = folder / "bin/python"
    # By os._exit: this version sometimes crashes when an interpreter ends in the usual way.
    if runs(python, "import os, mindspore_lite as m; os._exit(m.__version__ != '2.0.0')"):
        print(f"{python}: has {LITE}")
        return
    right = "import sys, venv; sys.exit(sys.version_info[:2] != (3, 7))"
    found = next((path for path in candidates() if runs(path, right)), None)
    if found is None:
        sys.exit(f"python3.7: not found, {LITE} needs it; {ADVICE}")
    for step in (
        [found, "-m", "venv", "--clear", folder],
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", LITE],
    ):
        if subprocess.run(step).returncode:
            sys.exit(f"{found}: {' '.join(map(str, step[1:]))} failed; see the lines above")
    print(f"{python}: {LITE}, from {found}")


if __name__ == "__main__":
    main()

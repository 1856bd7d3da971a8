"""The helper of the tox environment finds a Python 3.7 that runs, or says so in a line."""

import subprocess
import sys
from pathlib import Path

HELPER = Path(__file__).with_name("install.py")


def installed(tmp_path, path):
    return subprocess.run(
        [sys.executable, HELPER, tmp_path / "made"],
        env={"PATH": str(path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )


def interpreter(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_without_a_python_3_7_one_line_says_so(tmp_path):
    interpreter(tmp_path / "bin/python3.7", "exit 127")  # pyenv's shim of one not chosen
    done = installed(tmp_path, tmp_path / "bin")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("python3.7: not found, mindspore-lite==2.0.0 needs it; install")
    assert done.stderr.count("\n") == 1


def test_behind_a_shim_that_fails_pyenvs_own_is_found(tmp_path):
    """This one makes a folder with an interpreter that cannot install."""
    interpreter(tmp_path / "bin/python3.7", "exit 127")
    made = f'mkdir -p {tmp_path}/made/bin; printf "#!/bin/sh\\nexit 9" > {tmp_path}/made/bin/python'
    real = tmp_path / ".pyenv/versions/3.7.9/bin/python3.7"
    interpreter(
        real, f'[ "$2" = venv ] && {{ {made}; chmod +x {tmp_path}/made/bin/python; }}; exit 0'
    )
    done = installed(tmp_path, f"{tmp_path}/bin:/usr/bin:/bin")
    assert done.returncode == 1
    assert done.stderr == (
        f"{real}: -m pip install --quiet --disable-pip-version-check mindspore-lite==2.0.0 failed; "
        "see the lines above\n"
    )

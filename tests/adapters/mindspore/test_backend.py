"""Which MindSpore runs, and what is set for it."""

import subprocess
import sys

from refinedet.adapters.mindspore.backend import MindSporeCPU


def test_environment_caps_the_instruction_set_from_2_9_on(monkeypatch):
    from refinedet.adapters.mindspore import backend as module

    for found, capped in (
        ((2, 7, 2), False),
        ((2, 8, 0), False),
        ((2, 9, 0), True),
        ((2, 10), True),
    ):
        monkeypatch.setattr(module, "_version", lambda found=found: found)
        assert bool(MindSporeCPU().environment) is capped
        assert MindSporeCPU().missing() is None
    for found in ((2, 7, 1), (2, 11, 0)):
        monkeypatch.setattr(module, "_version", lambda found=found: found)
        assert "2.7.2 to 2.10" in MindSporeCPU().missing()


def test_it_runs_in_a_program_that_has_used_mindspore():
    code = (
        "import mindspore as ms; print((ms.Tensor([1.0]) + 1).asnumpy())\n"
        "from refinedet.backends.registry import find_backend\n"
        "print(find_backend('mindspore-cpu').describe())\n"
    )
    ended = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False
    )
    assert "MindSpore" in ended.stdout, ended.stderr

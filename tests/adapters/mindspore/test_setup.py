"""MindSpore's devices: what is set is a function of the options; what is missing is told."""

import subprocess
import sys

import pytest

from refinedet.adapters import devices
from refinedet.adapters.mindspore import backend, setup
from refinedet.adapters.mindspore.backend import (
    MindSporeAscend,
    MindSporeCPU,
    MindSporeGPU,
)
from refinedet.adapters.mindspore.setup import CAP, Setup, decide
from refinedet.backends.interface import ExportedFile
from refinedet.backends.registry import find_backend
from refinedet.errors import BackendError
from refinedet.settings import Settings
from refinedet.spec.network import initial_parameters
from refinedet.spec.presets import preset

WORKER = {"MS_ROLE": "MS_WORKER", "MS_WORKER_NUM": "8", "RANK_ID": "11", "DEVICE_ID": "3"}
BACKENDS = {"GPU": MindSporeGPU, "Ascend": MindSporeAscend}
LIST = ["--layout", "text", "--annotations", "list.txt", "--images", "images", "--classes", "a"]
COMMANDS = {
    "demo": (),
    "train": ("--run", "r", *LIST, "--preset", "refinedet_eighth_128"),
    "eval": ("--model", "m", *LIST),
    "detect": ("images", "--model", "m"),
    "export": ("--model", "m", "--output", "m.mindir"),
    "bench": (),
    "conformance": (),
}


def refused(result, message):
    status, out, err = result
    assert (status, out, err.count("\n")) == (1, "", 1), result
    assert err.startswith("refinedet: error: ")
    assert message in err


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine's devices and libraries, by their names; and a MindSpore with all plug-ins."""
    present = set()

    def has(*names):
        for name in names:
            if name.startswith("lib"):
                present.add(name)
            else:
                (tmp_path / name).touch()

    monkeypatch.setattr(devices, "DEVICES", tmp_path)
    monkeypatch.setattr(devices, "loads", lambda library: library in present)
    monkeypatch.setattr(setup, "plugin_folder", lambda: tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    has(*setup.PLUGINS.values())  # files, in the same folder
    for plugin in setup.PLUGINS.values():
        (tmp_path / plugin).touch()
    return has


@pytest.mark.parametrize(
    ("given", "decided"),
    [
        (("CPU", None, (2, 8, 0), {}), Setup("CPU", 0)),
        (("CPU", None, (2, 9, 0), {}), Setup("CPU", 0, CAP)),
        (("GPU", None, (2, 9, 0), {}), Setup("GPU", 0)),
        (("Ascend", 5, (2, 8, 0), {}), Setup("Ascend", 5)),
        # Variables of a launcher that is not msrun say nothing.
        (("Ascend", None, (2, 8, 0), {"DEVICE_ID": "3", "RANK_ID": "1"}), Setup("Ascend", 0)),
        (
            ("CPU", None, (2, 8, 0), WORKER),
            Setup("CPU", 0, communication="mccl", rank=11, ranks=8),
        ),
        (
            ("GPU", None, (2, 8, 0), WORKER),
            Setup("GPU", 3, communication="nccl", rank=11, ranks=8),
        ),
        (
            ("Ascend", None, (2, 8, 0), WORKER),
            Setup("Ascend", 3, communication="hccl", rank=11, ranks=8),
        ),
        (("Ascend", None, (2, 8, 0), {**WORKER, "MS_WORKER_NUM": "1"}), Setup("Ascend", 3)),
        (("GPU", None, (2, 8, 0), {**WORKER, "MS_ROLE": "MS_SCHED"}), Setup("GPU", 0)),
    ],
)
def test_what_is_set_follows_from_the_options(given, decided):
    assert decide(*given) == decided
    assert (decided.mode, decided.max_call_depth) == ("GRAPH_MODE", 10_000)


def test_variables_of_a_launcher_that_are_no_numbers():
    with pytest.raises(BackendError, match="RANK_ID: is -1, not a number from 0"):
        decide("GPU", None, (2, 8, 0), {**WORKER, "RANK_ID": "-1"})


def test_all_that_a_gpu_lacks_is_told(machine):
    driver, cuda, cudnn = MindSporeGPU().missing().split("; ")
    assert driver.startswith("no NVIDIA driver (")
    assert "no CUDA 11.6 (libcudart.so.11.0, libcublas.so.11," in cuda
    assert "cuda-11-6" in cuda
    assert cudnn.startswith("no cuDNN 8 for CUDA 11 (libcudnn.so.8 is not found): install it from")


def test_a_gpu_with_everything(machine, monkeypatch):
    machine("nvidiactl", "nvidia0", "nvidia1", "nvidia-uvm", "libcuda.so.1", "libcudnn.so.8")
    assert MindSporeGPU().missing().startswith("no CUDA 11.6 (libcudart")
    machine(*devices.CUDA)
    assert MindSporeGPU(1).missing() is None
    assert MindSporeGPU(2).missing() == "device_id 2: there are 2 (nvidia0, nvidia1)"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert MindSporeGPU(1).missing() == "device_id 1: there are 1 (1)"
    for hidden in ("", "-1", "-1,0"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert MindSporeGPU().missing().startswith("no GPU is shown: ")


def test_an_ascend_with_everything(machine):
    driver, cann = MindSporeAscend().missing().split("; ")
    assert driver.startswith("no Ascend driver (")
    assert cann.startswith("no CANN (libascendcl.so is not found)")
    machine("libascendcl.so", "davinci_manager", "davinci10", "davinci9")
    assert MindSporeAscend(1).missing() is None
    assert MindSporeAscend(2).missing() == "device_id 2: there are 2 (davinci9, davinci10)"


@pytest.mark.parametrize("device", BACKENDS)
def test_a_mindspore_without_the_plugin(machine, device, tmp_path):
    (tmp_path / setup.PLUGINS[device]).unlink()
    assert f"this MindSpore has no plug-in for {device} (" in BACKENDS[device]().missing()
    assert MindSporeCPU().missing() is None


def test_the_installed_mindspore_has_its_plugins():
    """So that a missing one is not always told."""
    assert all((setup.plugin_folder() / plugin).exists() for plugin in setup.PLUGINS.values())


@pytest.mark.parametrize("name", ["mindspore-gpu", "mindspore-ascend"])
def test_a_missing_device_is_told_before_anything(name):
    with pytest.raises(BackendError, match=f"backend {name}: no (NVIDIA|Ascend) driver"):
        find_backend(name)
    made = BACKENDS["GPU" if name == "mindspore-gpu" else "Ascend"]()
    config = preset("refinedet_eighth_128")
    with pytest.raises(BackendError, match=f"backend {name}: no"):
        made.network(config, initial_parameters(config, 0))


@pytest.mark.parametrize("device", BACKENDS)
def test_mindspores_own_refusal_is_one_line(machine, device):
    """Everything seems to be there, and MindSpore does not load it."""
    machine("nvidiactl", "nvidia0", "davinci0", *devices.CUDA, "libcuda.so.1", "libcudnn.so.8")
    machine("libascendcl.so")
    made = BACKENDS[device]()
    assert made.missing() is None
    with pytest.raises(BackendError, match=f"no {device}: Unsupported device target") as caught:
        made.describe()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("target", ["gpu", "ascend"])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_a_missing_device(run, tmp_path, monkeypatch, noise, command, target):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").write_text("0.png 2,3,30,40,1\n")
    before = set(tmp_path.iterdir())
    caught = run(command, *COMMANDS[command], "--target", target, "--device-id", 1)
    refused(caught, f"backend mindspore-{target}: no ")
    assert set(tmp_path.iterdir()) == before


def test_backends_tells_the_device_found(run):
    status, out, err = run("backends", "mindspore-cpu")
    assert (status, err) == (0, "")
    assert out.startswith("mindspore-cpu: MindSpore 2.")
    assert "on CPU, " in out
    refused(run("backends", "mindspore-gpu"), "backend mindspore-gpu: no NVIDIA driver")
    refused(run("backends", "mindspore-gpu", "--device-id", 1), "no NVIDIA driver")
    refused(run("backends", "mindspore-tpu"), "backend: no 'mindspore-tpu'; there are ")
    status, out, err = run("backends", "spec")
    assert (status, out.startswith("spec: NumPy ")) == (0, True)


def test_backends_names_all_and_what_each_lacks(run):
    status, out, err = run("backends")
    assert (status, err) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert lines["mindspore-cpu"] == "ready"
    assert lines["mindspore-ascend"].startswith("no Ascend driver")


def test_missing_is_known_without_importing_mindspore():
    script = (
        "import sys; from refinedet.adapters.mindspore.backend import MindSporeGPU; "
        "assert MindSporeGPU().missing(); assert 'mindspore' not in sys.modules"
    )
    subprocess.run([sys.executable, "-I", "-c", script], check=True)


def test_the_device_is_not_set_again_once_ranks_have_joined(monkeypatch):
    import mindspore as ms
    from mindspore.communication import GlobalComm

    def never(*_):
        raise AssertionError

    monkeypatch.setattr(GlobalComm, "INITED", True)
    monkeypatch.setattr(ms, "set_device", never)
    setup.apply(Setup("GPU", 0))
    monkeypatch.setattr(GlobalComm, "INITED", False)
    with pytest.raises(AssertionError):
        setup.apply(Setup("GPU", 0))


def test_the_backend_of_a_device_sets_it_up():
    assert MindSporeAscend(7).setup == Setup("Ascend", 7)


def test_numpy_2_is_told_before_it_breaks_mindspore(monkeypatch):
    """As the newest ``onnx`` brings it into an environment that trains."""
    own = backend.version
    monkeypatch.setattr(backend, "version", lambda name: "2.4.6" if name == "numpy" else own(name))
    assert MindSporeCPU().missing() == (
        "MindSpore does not run with NumPy 2; run: pip install 'refinedet[cpu]' 'numpy<2'"
    )


def test_an_onnx_file_is_told_its_backend(tmp_path):
    settings = Settings(preset("refinedet_eighth_128"))
    file = ExportedFile(tmp_path / "detector.onnx", settings, True, "")
    with pytest.raises(BackendError, match="ONNX file runs with the backend onnxruntime"):
        MindSporeCPU().load(file)

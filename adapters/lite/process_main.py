"""MindSpore Lite: converts a model, loads one, runs it; imported, or as a process behind pipes.

Images of devices often carry an old Python. So this file runs on CPython 3.7 and later with
NumPy and ``mindspore_lite`` alone, as ``PYTHON -I process_main.py``: messages over standard input
and output, as ``send`` writes them. It ends with its standard input, that is with its parent.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import struct
import sys
from typing import IO, Any

import numpy as np

GREETING = b"refinedet lite process 1\n"
"""Comes before the first message, so that another program is recognised as such."""
QUIET = "GLOG_v"
"""Lite's variable for the least of its messages that it prints: 3 errors, 4 what ends it."""


def send(stream: IO[bytes], head: dict[str, Any], arrays: dict[str, Any]) -> None:
    """Write a message: the length of its JSON (4 bytes, low first), the JSON, the arrays.

    Args:
        head: what JSON can hold.
        arrays: NumPy arrays of at least one element, by name; the JSON has name, dtype and
            shape of each, under ``arrays``.
    """
    about = [[name, array.dtype.str, array.shape] for name, array in arrays.items()]
    text = json.dumps(dict(head, arrays=about)).encode()
    stream.write(struct.pack("<I", len(text)) + text)
    for array in arrays.values():
        stream.write(np.ascontiguousarray(array).data.cast("B"))
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a message.

    Raises:
        EOFError: the other side has ended.
        ValueError: this is no message.
    """
    (size,) = struct.unpack("<I", _exactly(stream, 4))
    head = json.loads(_exactly(stream, size).decode())
    arrays = {}
    for name, dtype, shape in head.pop("arrays"):
        array = np.empty(shape, dtype)
        if stream.readinto(array.data.cast("B")) != array.nbytes:  # type: ignore[attr-defined]
            raise EOFError
        arrays[name] = array
    return head, arrays


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data


def convert(onnx: str, output: str, device: str | None, shape: list[int]) -> None:
    """Convert an ONNX file to a MindIR.

    Args:
        onnx: the file; it has one input, ``images``.
        output: the file to write, without its ``.mindir``.
        device: ``Ascend`` to compile for this machine's; None for the CPU.
        shape: of ``images``, for which it is compiled.
    Raises:
        RuntimeError: Lite cannot convert it.
    """
    import mindspore_lite

    converter = mindspore_lite.Converter()
    converter.save_type = mindspore_lite.ModelType.MINDIR
    if device is not None:
        converter.device = device
    converter.input_shape = {"images": shape}
    converter.convert(mindspore_lite.FmkType.ONNX, onnx, output)


class Detector:
    """A MindIR on one device.

    Args:
        path: the file.
        target: ``cpu`` or ``ascend``; Lite adds no other to it that computes the network.
        device_id: which of the devices, from 0; read by ``ascend``.
        threads: of the processor; read by ``cpu``.
    Raises:
        RuntimeError: Lite cannot load it, or lacks the device.
    """

    def __init__(self, path: str, target: str, device_id: int, threads: int) -> None:
        import mindspore_lite

        context = mindspore_lite.Context()
        context.target = [target]
        if target == "ascend":
            context.ascend.device_id = device_id
        else:
            context.cpu.thread_num = threads
        self.model = mindspore_lite.Model()
        self.model.build_from_file(path, mindspore_lite.ModelType.MINDIR, context)
        self.inputs = [[t.name, t.shape, t.dtype.name] for t in self.model.get_inputs()]
        """Name, shape (-1 where open) and Lite's dtype of each."""

    def run(self, images: Any) -> dict[str, Any]:
        """The outputs by name, new arrays.

        Args:
            images: float32, of the compiled shape. Lite 2.0.0 accepts another one, and then
                some images of an even number come out wrong on two threads.
        """
        tensors = self.model.get_inputs()
        tensors[0].set_data_from_numpy(images)
        return {t.name: np.array(t.get_data_to_numpy()) for t in self.model.predict(tensors)}


def main() -> None:
    """Greet, then answer until standard input ends."""
    replies = os.fdopen(os.dup(1), "wb")
    questions = os.fdopen(os.dup(0), "rb")
    os.dup2(2, 1)  # Lite's C++ prints there
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ[QUIET] = "3"  # its parent reads them
    # Which -I leaves out. CANN has packages there, and after the interpreter's own nothing of
    # another version comes before them.
    sys.path += filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    import mindspore_lite

    replies.write(GREETING)
    versions = {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "lite": mindspore_lite.__version__,
    }
    send(replies, versions, {})
    detector: Any = None
    while True:
        asked, arrays = receive(questions)
        # The system ends a process that is late, even where C++ does not return to Python
        # and nobody is left to end it from outside.
        signal.alarm(asked["limit"])
        head: dict[str, Any] = {}
        outputs: dict[str, Any] = {}
        try:
            if asked["call"] == "convert":
                convert(**asked["given"])
            elif asked["call"] == "load":
                detector = Detector(**asked["given"])
                head = {"inputs": detector.inputs}
            else:
                outputs = detector.run(arrays["images"])
        except Exception as error:
            head = {"error": f"{type(error).__name__}: {error}"}
        signal.alarm(0)
        send(replies, head, outputs)


if __name__ == "__main__":
    try:
        main()
    except (EOFError, BrokenPipeError):
        # Not by the interpreter's own end: Lite 2.0.0 sometimes crashes in its destructors.
        os._exit(0)

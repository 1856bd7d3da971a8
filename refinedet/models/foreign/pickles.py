"""The pickle in a PyTorch file, read by hand: names of tensors in, no code run.

A pickle is a program for a machine with a stack. Python's own machine imports and calls
what the pickle names; this one knows the few operations that a dictionary of tensors
needs and calls nothing. Names are compared with a list; any other is an error.

Sources: CPython, Lib/pickletools.py, for the operations; PyTorch, torch/_utils.py and
torch/serialization.py, for the names and their arguments.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass
from typing import IO, Any

from refinedet.errors import FormatError
from refinedet.support.text import one_line

DTYPES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
"""PyTorch's storages, and NumPy's dtypes for them."""

ORDERED = "collections.OrderedDict"
REBUILT = {
    "torch._utils._rebuild_tensor": 4,
    "torch._utils._rebuild_tensor_v2": 6,
    "torch._utils._rebuild_parameter": 3,
}
"""What rebuilds a tensor, and how many arguments it has at least."""


@dataclass(frozen=True)
class Name:
    """A name that the pickle mentions, and that is known."""

    name: str


@dataclass(frozen=True)
class Storage:
    """Numbers that lie elsewhere in the file."""

    key: str
    dtype: str
    count: int


@dataclass(frozen=True)
class Tensor:
    """A view of a storage; everything in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class _Mark:
    """Where a run of items begins on the stack."""


CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
ARGUMENTS = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
    "BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING",
}  # fmt: skip
"""Operations that put their own argument on the stack."""


def read_pickle(stream: IO[bytes]) -> Any:
    """The value of the next pickle, of dicts, lists, tuples, texts, numbers and tensors.

    An ``OrderedDict`` is a dict, a parameter its tensor; attributes are dropped.

    Raises:
        FormatError: cut off, or it holds something else than tensors; nothing was run.
    """
    machine = _Machine()
    try:
        for operation, argument, _ in pickletools.genops(stream):
            if operation.name == "STOP":
                return machine.pop()
            machine.step(operation.name, argument)
    except (IndexError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise FormatError(f"its pickle makes no sense: {type(error).__name__}") from error
    except FormatError:
        raise
    except ValueError as error:  # of pickletools
        raise FormatError(f"its pickle is cut off, or none: {error}") from error
    raise FormatError("its pickle has no end")


class _Machine:
    """The stack and the memory of a pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memory: dict[int, Any] = {}

    def pop(self) -> Any:
        return self.stack.pop()

    def pop_run(self) -> list[Any]:
        """The items down to the last mark, which goes too."""
        for start in range(len(self.stack) - 1, -1, -1):
            if isinstance(self.stack[start], _Mark):
                run = self.stack[start + 1 :]
                del self.stack[start:]
                return run
        raise IndexError

    def step(self, operation: str, argument: Any) -> None:
        """One operation."""
        push = self.stack.append
        if operation in ARGUMENTS:
            push(argument)
        elif operation in CONSTANTS:
            push(CONSTANTS[operation])
        elif operation in ("PROTO", "FRAME"):
            pass
        elif operation in ("BINPUT", "LONG_BINPUT"):
            self.memory[argument] = self.stack[-1]
        elif operation == "MEMOIZE":
            self.memory[len(self.memory)] = self.stack[-1]
        elif operation in ("BINGET", "LONG_BINGET"):
            push(self.memory[argument])
        elif operation == "MARK":
            push(_Mark())
        elif operation == "EMPTY_TUPLE":
            push(())
        elif operation in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(operation[-1])
            items = self.stack[-count:]
            del self.stack[-count:]
            push(tuple(items))
        elif operation == "TUPLE":
            push(tuple(self.pop_run()))
        elif operation == "EMPTY_LIST":
            push([])
        elif operation == "APPEND":
            item = self.pop()
            _of(list, self.stack[-1]).append(item)
        elif operation == "APPENDS":
            run = self.pop_run()
            _of(list, self.stack[-1]).extend(run)
        elif operation == "EMPTY_DICT":
            push({})
        elif operation == "SETITEM":
            value, key = self.pop(), self.pop()
            _set(self.stack[-1], key, value)
        elif operation == "SETITEMS":
            run = self.pop_run()
            for key, value in zip(run[::2], run[1::2], strict=True):
                _set(self.stack[-1], key, value)
        elif operation == "GLOBAL":
            push(_known(argument.replace(" ", ".", 1)))
        elif operation == "STACK_GLOBAL":
            name, module = self.pop(), self.pop()
            push(_known(f"{module}.{name}"))
        elif operation == "BINPERSID":
            push(_storage(self.pop()))
        elif operation == "REDUCE":
            arguments, name = _of(tuple, self.pop()), _of(Name, self.pop()).name
            push(_rebuilt(name, arguments))
        elif operation == "BUILD":
            self.pop()  # attributes of an OrderedDict: the versions of its layers
            _of(dict, self.stack[-1])
        else:
            raise FormatError(
                f"its pickle has the operation {operation}, which tensors do not need; "
                "nothing of it was run"
            )


def _of(kind: type | tuple[type, ...], value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError
    return value


def _set(target: Any, key: Any, value: Any) -> None:
    _of(dict, target)[_of((str, int), key)] = value


def _known(name: str) -> Name:
    if name == ORDERED or name in REBUILT or _dtype(name):
        return Name(name)
    raise FormatError(
        f"its pickle names {one_line(name, 60)}, which is no part of a tensor; nothing of it "
        "was run"
    )


def _dtype(name: str) -> str | None:
    module, _, last = name.rpartition(".")
    return DTYPES.get(last) if module in ("torch", "torch.cuda") else None


def _storage(mark: Any) -> Storage:
    """The storage of a persistent id: ``storage``, class, key, device, count, view."""
    what, kind, key, _, count, *view = _of(tuple, mark)
    dtype = _dtype(_of(Name, kind).name)
    if what != "storage" or dtype is None or any(part is not None for part in view):
        raise TypeError
    return Storage(_of(str, key), dtype, _whole(count))


def _rebuilt(name: str, arguments: tuple[Any, ...]) -> Any:
    """What calling the name would have made."""
    if name == ORDERED:
        made: dict[Any, Any] = {}
        for pairs in arguments:
            for key, value in _of(list, pairs):
                _set(made, key, value)
        return made
    if name not in REBUILT or len(arguments) < REBUILT[name]:
        raise TypeError
    if name.endswith("_parameter"):
        return _of(Tensor, arguments[0])
    storage, offset, shape, strides = arguments[:4]
    return Tensor(
        _of(Storage, storage),
        _whole(offset),
        tuple(_whole(n) for n in _of(tuple, shape)),
        tuple(_whole(n) for n in _of(tuple, strides)),
    )


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError
    return value

"""The pickle in a PyTorch file, read without running any of its code.

A pickle is a program for a stack machine. Python's own machine imports and calls whatever
the pickle names. This one has only the operations that a dictionary of tensors needs, accepts
only the names in a list, and calls nothing.

Sources: CPython, Lib/pickletools.py, for the operations; PyTorch, torch/_utils.py and
torch/serialization.py, for the names and their arguments.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
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
"""Functions that rebuild a tensor, and their smallest number of arguments."""


@dataclass(frozen=True)
class Name:
    """A function or class that the pickle names and that is in a list here."""

    name: str


@dataclass(frozen=True)
class Storage:
    """Numbers elsewhere in the file."""

    key: str
    dtype: str
    count: int


@dataclass(frozen=True)
class Tensor:
    """A view of a storage; offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class _Mark:
    """Where a run of items begins on the stack."""


ARGUMENTS = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
    "BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING",
}  # fmt: skip
"""Operations that push their argument."""


def read_pickle(stream: IO[bytes]) -> Any:
    """The value of the next pickle: dicts, lists, tuples, strings, numbers and tensors.

    An ``OrderedDict`` is a dict, a parameter its tensor; attributes are dropped.

    Raises:
        FormatError: cut off, or it holds something other than tensors; nothing was run.
    """
    machine = _Machine()
    try:
        for operation, argument, _ in pickletools.genops(stream):
            if operation.name == "STOP":
                return machine.pop()
            machine.step(operation.name, argument)
    except (IndexError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise FormatError(f"its pickle is malformed: {type(error).__name__}") from error
    except FormatError:
        raise
    except ValueError as error:  # of pickletools
        raise FormatError(f"its pickle is cut off, or none: {error}") from error
    raise FormatError("its pickle has no end")


class _Machine:
    """The stack and the memo of a pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def pop(self) -> Any:
        return self.stack.pop()

    def pop_run(self) -> list[Any]:
        """Pop the items above the last mark, and the mark."""
        for start in range(len(self.stack) - 1, -1, -1):
            if isinstance(self.stack[start], _Mark):
                run = self.stack[start + 1 :]
                del self.stack[start:]
                return run
        raise IndexError

    def step(self, operation: str, argument: Any) -> None:
        """Run one operation."""
        if operation in PUSHED:
            self.stack.append(PUSHED[operation](argument))
        elif operation in OPERATIONS:
            OPERATIONS[operation](self, argument)
        elif operation not in IGNORED:
            raise FormatError(
                f"its pickle has the operation {operation}, which tensors do not need; "
                "nothing of it was run"
            )

    def store(self, argument: Any) -> None:
        """Remember the top of the stack, under a number or the next one."""
        self.memo[len(self.memo) if argument is None else argument] = self.stack[-1]

    def recall(self, argument: Any) -> None:
        self.stack.append(self.memo[argument])

    def make_tuple(self, count: int) -> None:
        items = self.stack[-count:]
        del self.stack[-count:]
        self.stack.append(tuple(items))

    def append(self) -> None:
        item = self.pop()
        _of(list, self.stack[-1]).append(item)

    def extend(self) -> None:
        run = self.pop_run()
        _of(list, self.stack[-1]).extend(run)

    def set_item(self) -> None:
        value, key = self.pop(), self.pop()
        _set(self.stack[-1], key, value)

    def set_items(self) -> None:
        run = self.pop_run()
        for key, value in zip(run[::2], run[1::2], strict=True):
            _set(self.stack[-1], key, value)

    def name_from_stack(self) -> None:
        name, module = self.pop(), self.pop()
        self.stack.append(_known(f"{module}.{name}"))

    def call(self) -> None:
        arguments, name = _of(tuple, self.pop()), _of(Name, self.pop()).name
        self.stack.append(_rebuilt(name, arguments))

    def drop_attributes(self) -> None:
        """Of an OrderedDict: the versions of its layers."""
        self.pop()
        _of(dict, self.stack[-1])


PUSHED: Mapping[str, Callable[[Any], Any]] = {
    **dict.fromkeys(ARGUMENTS, lambda argument: argument),
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "MARK": lambda _: _Mark(),
    "EMPTY_TUPLE": lambda _: (),
    "EMPTY_LIST": lambda _: [],
    "EMPTY_DICT": lambda _: {},
    "GLOBAL": lambda argument: _known(argument.replace(" ", ".", 1)),
}
"""Operations that only push a value, made of their argument."""

OPERATIONS: Mapping[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.store),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.recall),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.pop_run())),
    "TUPLE1": lambda machine, _: machine.make_tuple(1),
    "TUPLE2": lambda machine, _: machine.make_tuple(2),
    "TUPLE3": lambda machine, _: machine.make_tuple(3),
    "APPEND": lambda machine, _: machine.append(),
    "APPENDS": lambda machine, _: machine.extend(),
    "SETITEM": lambda machine, _: machine.set_item(),
    "SETITEMS": lambda machine, _: machine.set_items(),
    "STACK_GLOBAL": lambda machine, _: machine.name_from_stack(),
    "BINPERSID": lambda machine, _: machine.stack.append(_storage(machine.pop())),
    "REDUCE": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.drop_attributes(),
}
"""The other operations that tensors need."""

IGNORED = ("PROTO", "FRAME")


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
    """What a call of the name would have returned."""
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

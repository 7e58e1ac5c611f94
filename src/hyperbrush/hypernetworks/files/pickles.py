"""The outline of a pickle: what torch would make of it, tensors as shapes only, nothing executed.

An interpreter of the few operations torch writes.  It takes memory in proportion to the pickle's
length and runs before torch reads the file, so that what torch then allocates is known.
"""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks.files.outlines import DTYPES, KNOWN, ODD, STORAGES, Global, Odd, Storage, Tensor

MAX_OPERATIONS = 500_000  # a whole Stable Diffusion XL checkpoint has about 100,000
MAX_TEXT = 1_000_000  # bytes of one text


class PickleOutline:
    """Reads one pickle after another from a file, up to a common number of operations.

    Raises (by `read`):
        UserError: another operation, class or function than torch's plain tensors and settings need,
            too long a text or too many operations, or a pickle that makes no sense.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.file = file
        self.operations = 0
        self.storages: dict[str, Storage] = {}
        self.odd: list[str] = []

    def read(self) -> Any:
        """The next pickle's value."""
        try:
            return self._run()
        except UserError:
            raise
        except (IndexError, KeyError, TypeError, ValueError, struct.error, EOFError) as error:
            raise UserError(
                f"{self.path} is damaged: its pickle makes no sense "
                f"({type(error).__name__} at byte {self.file.tell()}). Copy or download it again"
            ) from error

    def _run(self) -> Any:
        stack: list[Any] = []
        marks: list[list[Any]] = []
        memo: dict[int, Any] = {}
        while True:
            self.operations += 1
            if self.operations > MAX_OPERATIONS:
                raise UserError(
                    f"{self.path}: its pickle has over {MAX_OPERATIONS} operations, "
                    "far more than a hypernetwork needs"
                )
            op = self._bytes(1)
            if op == b".":
                return stack.pop()
            if op == b"(":
                marks.append(stack)
                stack = []
            elif op in b"tue":
                items, stack = stack, marks.pop()
                self._gather(op, items, stack)
            elif op in b"qr":
                memo[self._number("<B" if op == b"q" else "<I")] = stack[-1]
            elif op in b"hj":
                stack.append(memo[self._number("<B" if op == b"h" else "<I")])
            elif op in _CONSTANTS:
                stack.append(_CONSTANTS[op]())
            elif op in _NUMBERS:
                stack.append(self._number(_NUMBERS[op]))
            else:
                self._other(op, stack)

    def _gather(self, op: bytes, items: list[Any], stack: list[Any]) -> None:
        """A tuple, dictionary entries or list entries out of all since the mark."""
        if op == b"t":
            stack.append(tuple(items))
        elif op == b"e":
            _checked(stack[-1], list).extend(items)
        else:
            mapping = _checked(stack[-1], dict)
            for key, value in zip(items[::2], items[1::2], strict=True):
                mapping[_key(self.path, key)] = value

    def _other(self, op: bytes, stack: list[Any]) -> None:
        if op == b"X":
            stack.append(str(self._bytes(self._length("<I")), "utf-8", "surrogatepass"))
        elif op == b"U":
            stack.append(self._bytes(self._length("<B")).decode("ascii"))
        elif op == b"\x8a":
            stack.append(int.from_bytes(self._bytes(self._length("<B")), "little", signed=True))
        elif op in b"\x85\x86\x87":
            n = op[0] - 0x84
            items = [stack.pop() for _ in range(n)]
            stack.append(tuple(reversed(items)))
        elif op == b"s":
            value, key = stack.pop(), stack.pop()
            _checked(stack[-1], dict)[_key(self.path, key)] = value
        elif op == b"a":
            item = stack.pop()
            _checked(stack[-1], list).append(item)
        elif op == b"c":
            stack.append(self._global())
        elif op == b"Q":
            stack.append(self._storage(stack.pop()))
        elif op == b"R":
            arguments = _checked(stack.pop(), tuple)
            stack.append(self._made(_checked(stack.pop(), Global).name, arguments))
        elif op == b"b":
            # An OrderedDict's attributes (torch's _metadata) say nothing of its tensors.
            attributes = _checked(stack.pop(), dict)
            _checked(stack[-1], dict)
            if len(attributes) > 8:  # torch copies them each time
                raise ValueError("attributes")
        elif op == b"\x80":
            if self._number("<B") != 2:  # torch's own; it warns of others, which it reads badly
                raise UserError(
                    f"{self.path} is damaged, or not written by torch: its pickle is no protocol 2"
                )
        else:
            raise UserError(
                f"{self.path} is damaged, or no file of torch's: its pickle has the operation {op!r}, "
                "which is never executed. Get it again from a source you trust"
            )

    def _made(self, name: str, arguments: tuple[Any, ...]) -> Any:
        """What torch's rebuilding functions would return."""
        if name == "collections.OrderedDict":
            if arguments:  # entries follow one by one; a list of them, used often, would grow without end
                raise ValueError("entries")
            return {}
        if name == "torch._utils._rebuild_tensor":
            return self._tensor(*arguments)
        if name == "torch._utils._rebuild_tensor_v2":
            *place, requires_grad, hooks = arguments[:6]
            if not isinstance(requires_grad, bool) or hooks or any(arguments[6:]):
                return self._odd("a tensor with hooks or flags")
            return self._tensor(*place)
        if name == "torch._utils._rebuild_parameter":
            data, requires_grad, hooks = arguments
            sound = isinstance(requires_grad, bool) and not hooks
            return data if sound else self._odd("a parameter with hooks")
        if name == "torch.Size":
            return _sizes(arguments[0])
        if name in ODD:
            return self._odd(ODD[name])
        raise _refused(self.path, name)

    def _odd(self, what: str) -> Odd:
        self.odd.append(what)
        return Odd(what)

    def _tensor(self, storage: Any, offset: Any, shape: Any, stride: Any) -> Tensor:
        made = Tensor(_checked(storage, Storage), _size(offset), _sizes(shape), _sizes(stride))
        begin, end = made.span
        if not 0 <= begin <= end <= made.storage.numel:
            raise UserError(
                f"{self.path} is damaged: a tensor of shape {_short(made.shape)} looks past the "
                f"{made.storage.numel} numbers of its storage. Get the file again"
            )
        if made.numel > end - begin:
            raise UserError(
                f"{self.path}: a tensor of shape {_short(made.shape)} repeats the {end - begin} numbers it has: "
                "it would unpack to any size; the file is damaged"
            )
        return made

    def _storage(self, identifier: Any) -> Storage:
        kind, cls, key, location, numel, *view = _checked(identifier, tuple)
        if kind != "storage" or any(v is not None for v in view) or not isinstance(location, str):
            raise UserError(f"{self.path}: its tensors are views of each other, as torch wrote before 2017")
        dtype, size = STORAGES[_checked(cls, Global).name.rpartition(".")[2]]
        storage = Storage(_checked(key, str), dtype, size, _size(numel))
        if self.storages.setdefault(storage.key, storage) != storage:
            raise UserError(f"{self.path} is damaged: its storage {storage.key!r:.40} has two sizes or types")
        return storage

    def _global(self) -> Global:
        module, name = (self.file.readline(200).rstrip(b"\n").decode("utf-8") for _ in range(2))
        full = f"{module}.{name}"
        storage = module in ("torch", "torch.storage") and name in STORAGES
        if full not in KNOWN and full not in DTYPES and not storage:
            raise _refused(self.path, full)
        return Global(full)

    def _length(self, form: str) -> int:
        length = self._number(form)
        if length > MAX_TEXT:
            raise UserError(f"{self.path}: its pickle has a text of {length} bytes; settings are short")
        return int(length)

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._bytes(struct.calcsize(form)))[0]

    def _bytes(self, size: int) -> bytes:
        raw = self.file.read(size)
        if len(raw) != size:
            raise EOFError
        return raw


_CONSTANTS: dict[bytes, Callable[[], Any]] = {
    b"N": lambda: None,
    b"\x88": lambda: True,
    b"\x89": lambda: False,
    b")": tuple,
    b"]": list,
    b"}": dict,
}
_NUMBERS = {b"K": "<B", b"M": "<H", b"J": "<i", b"G": ">d"}


def _checked(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(type(value).__name__)
    return value


def _key(path: Path, key: Any) -> Any:
    # The hash of nested tuples can take for ever.
    if not isinstance(key, str | int | float | bytes | None):
        raise UserError(
            f"{path} is no hypernetwork: a mapping in it has a {type(key).__name__} for a key, not a text or number"
        )
    return key


def _size(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**62:
        raise ValueError("size")
    return value


def _sizes(values: Any) -> tuple[int, ...]:
    if len(values) > 8:
        raise ValueError("dimensions")
    return tuple(_size(value) for value in _checked(values, tuple | list))


def _short(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "()"


def _refused(path: Path, name: str) -> UserError:
    return UserError(
        f"{path} holds more than tensors and settings: it asks for {name!r:.120}, which is never executed. "
        "Get it again from a source you trust"
    )

"""Files of ``torch.save``: their outline first, then ``torch.load(weights_only=True)``, never a fallback.

The outline is what torch would make of the file's pickle, tensors as shapes only: an interpreter of the few
operations torch writes, in which no class or function is ever looked up.  It takes memory in proportion to the
pickle's length and runs before torch reads the file, so that what torch then allocates is known.
"""

import io
import math
import pickle
import pickletools
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks.files.archive import members
from hyperbrush.hypernetworks.files.suspects import regular_size, what_it_is

MAX_PICKLE = 4 * 1024 * 1024  # bytes; a hypernetwork's pickle has a few thousand
MAX_OPERATIONS = 500_000  # a whole Stable Diffusion XL checkpoint has about 100,000
MAX_TEXT = 1_000_000  # letters of one text
_MAGIC = 0x1950A86A20F9469CFC6C  # of the form before 2020, without a zip
_PROTOCOL = 1001
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}
# What torch can read and a hypernetwork cannot hold; what is not in either table is named as it is.
_ODD = {
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_qtensor": "a quantised tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "a tensor without content",
    "torch._utils._rebuild_tensor_v3": "a tensor of an unusual type",
    "builtins.set": "a set",
    "__builtin__.set": "a set",
}
_KNOWN = {
    "collections.OrderedDict",
    "torch.Size",
    "torch.nn.parameter.Parameter",
    "torch.Tensor",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    *(f"{module}.{name}" for module in ("torch", "torch.storage") for name in _STORAGES),
    *map(str, _STORAGES.values()),
    *(f"torch.{name}" for name in ("uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2")),
}
_NEW: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
_TAKEN = {
    "TUPLE1": 1,
    "TUPLE2": 2,
    "TUPLE3": 3,
    "APPEND": 1,
    "SETITEM": 2,
    "REDUCE": 2,
    "BUILD": 1,
    "BINPERSID": 1,
}
_TAKING_ALL = ("TUPLE", "APPENDS", "SETITEMS")
_ARGUMENTS = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING")
_MACHINE = ("PROTO", "STOP", "MARK", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "GLOBAL")
_OPERATIONS = {*_NEW, *_TAKEN, *_TAKING_ALL, *_ARGUMENTS, *_MACHINE}


@dataclass(frozen=True)
class Storage:
    """The place of tensors' numbers in the file."""

    key: str
    dtype: torch.dtype
    numel: int

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class Tensor:
    """A tensor that was not read; span: the first and last + 1 number of the storage that it sees."""

    storage: Storage
    shape: tuple[int, ...]
    span: tuple[int, int]

    @property
    def dtype(self) -> torch.dtype:
        """Type of its numbers."""
        return self.storage.dtype


@dataclass(frozen=True)
class _Global:
    """A class or function that the pickle names; never looked up."""

    name: str


def outline(path: Path) -> Any:
    """What a file of ``torch.save`` holds, of the present form (zip) or the one before; `Tensor` for tensors.

    Takes little memory, whatever the file says: tensors are not read, and each storage is known to lie in
    the file, so that `read` allocates no more than the file's size.

    Raises:
        UserError: the file is damaged, of another program, asks for code to be executed, declares
            more than it has, or holds tensors that are no plain ones.
    """
    size = regular_size(path)
    with path.open("rb") as file:
        head = file.read(64)
        if head.startswith(b"PK"):
            return _zip_outline(path, file, size)
        if head[:1] == b"\x80" and head[1:2] in b"\2\3\4\5":
            return _legacy_outline(path, file, size)
    raise UserError(f"{path} is damaged or no torch file: {what_it_is(head)}. Copy or download it again")


def read(path: Path) -> Any:
    """The content of a file whose outline was found sound, its tensors on the CPU.

    Raises:
        UserError: torch cannot read it.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except pickle.UnpicklingError as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{path} is damaged, or holds more than tensors and settings, which is never executed "
            f"({reason:.200}). Get it again from a source you trust"
        ) from error
    except Exception as error:  # whatever a broken file makes the reader stumble over
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise UserError(
            f"{path} is damaged or no torch file ({reason:.160}). Copy or download it again"
        ) from error


def _zip_outline(path: Path, file: BinaryIO, size: int) -> Any:
    found = members(path, file, size)
    offset, length = found["data.pkl"]
    if length > MAX_PICKLE:
        raise UserError(f"{path}: its pickle has {length} bytes, far more than a hypernetwork's settings")
    file.seek(offset)
    pickled = _Pickles(path, file.read(length))
    content = pickled.read()
    for storage in pickled.storages.values():
        member = found.get(f"data/{storage.key}")
        if member is None or member.size != storage.nbytes:
            raise _wrong_size(path, storage, 0 if member is None else member.size)
    return content


def _legacy_outline(path: Path, file: BinaryIO, size: int) -> Any:
    """The form before 2020: five pickles, then each storage's length and numbers, in order of keys."""
    file.seek(0)
    pickled = _Pickles(path, file.read(MAX_PICKLE))
    if pickled.read() != _MAGIC or pickled.read() != _PROTOCOL:
        raise UserError(f"{path} is damaged or no torch file: it is a pickle of another program")
    pickled.read()  # the writer's byte order, of no use to torch either
    content = pickled.read()
    keys = pickled.read()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise UserError(f"{path} is damaged: it has no list of storages. Copy or download it again")
    if sorted(keys) != sorted(pickled.storages):
        raise UserError(f"{path} is damaged: its list of storages is not the one of its tensors")
    at = pickled.file.tell()
    for key in keys:
        storage = pickled.storages[key]
        file.seek(at)
        head = file.read(8)
        at += 8 + storage.nbytes
        if len(head) < 8 or at > size:
            raise _wrong_size(path, storage, max(0, size - at + storage.nbytes))
        numel = struct.unpack("<q", head)[0]
        if numel != storage.numel:
            raise _wrong_size(path, storage, numel * storage.dtype.itemsize)
    return content


def _wrong_size(path: Path, storage: Storage, has: int) -> UserError:
    return UserError(
        f"{path} is damaged: its storage {storage.key!r:.40} is said to have {storage.nbytes} bytes, "
        f"but the file has {has}. Copy or download it again"
    )


class _Pickles:
    """Reads one pickle after another, up to a common number of operations; storages: those they name."""

    def __init__(self, path: Path, raw: bytes) -> None:
        self.path = path
        self.file = io.BytesIO(raw)
        self.operations = 0
        self.storages: dict[str, Storage] = {}

    def read(self) -> Any:
        """The next pickle's value.

        Raises:
            UserError: another operation, class or function than torch's plain tensors and settings need,
                too long a text or too many operations, or a pickle that makes no sense.
        """
        try:
            return self._run()
        except (IndexError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"{self.path} is damaged: its pickle makes no sense "
                f"({type(error).__name__} at byte {self.file.tell()}: {error!s:.80}). Copy or download it again"
            ) from error

    def _run(self) -> Any:
        stack: list[Any] = []
        marks: list[list[Any]] = []
        memo: dict[int, Any] = {}
        argument: Any
        for operation, argument, _ in pickletools.genops(self.file):
            name = operation.name
            self._check(name, argument)
            if name == "MARK":
                marks.append(stack)
                stack = []
            elif name in ("BINPUT", "LONG_BINPUT"):
                memo[argument] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            elif name == "GLOBAL":
                stack.append(self._global(argument))
            elif name in _NEW:
                stack.append(_NEW[name]())
            elif name in _ARGUMENTS:
                stack.append(argument)
            elif name in _TAKING_ALL:
                items, stack = stack, marks.pop()
                self._take(name, items, stack)
            elif name in _TAKEN:
                items = [stack.pop() for _ in range(_TAKEN[name])]
                self._take(name, items[::-1], stack)
        return stack.pop()

    def _check(self, name: str, argument: Any) -> None:
        """Look at one operation before it is done."""
        self.operations += 1
        if self.operations > MAX_OPERATIONS:
            raise UserError(
                f"{self.path}: its pickle has over {MAX_OPERATIONS} operations, far more than a hypernetwork needs"
            )
        if name not in _OPERATIONS:
            raise UserError(
                f"{self.path} is damaged, or no file of torch's: its pickle has the operation {name}, "
                "which is never executed. Get it again from a source you trust"
            )
        if name == "PROTO" and argument != 2:  # torch's own; it warns of others, which it reads badly
            raise UserError(f"{self.path} is damaged, or not written by torch: its pickle is no protocol 2")
        if isinstance(argument, str) and len(argument) > MAX_TEXT:
            raise UserError(
                f"{self.path}: its pickle has a text of {len(argument)} letters; settings are short"
            )

    def _take(self, name: str, items: list[Any], stack: list[Any]) -> None:
        """An operation on the items above the rest of the stack."""
        match name:
            case "APPEND" | "APPENDS":
                _checked(stack[-1], list).extend(items)
            case "SETITEM" | "SETITEMS":
                mapping = _checked(stack[-1], dict)
                for key, value in zip(items[::2], items[1::2], strict=True):
                    # The hash of nested tuples can take without end.
                    if not isinstance(key, str | int | float | bytes | None):
                        raise UserError(
                            f"{self.path} is no hypernetwork: a mapping in it has a {type(key).__name__} for a key, "
                            "not a text or number"
                        )
                    mapping[key] = value
            case "BUILD":
                # An OrderedDict's attributes (torch's _metadata) say nothing of its tensors.
                _checked(stack[-1], dict)
                if len(_checked(items[0], dict)) > 8:  # torch copies them each time
                    raise ValueError("attributes")
            case "REDUCE":
                stack.append(self._made(_checked(items[0], _Global).name, _checked(items[1], tuple)))
            case "BINPERSID":
                stack.append(self._storage(*_checked(items[0], tuple)))
            case _:
                stack.append(tuple(items))

    def _made(self, name: str, arguments: tuple[Any, ...]) -> Any:
        """What torch's rebuilding functions would return."""
        if name == "collections.OrderedDict":
            if arguments:  # entries follow one by one; a list of them, used often, would grow without end
                raise ValueError("entries")
            return {}
        if name == "torch.Size":
            return _sizes(arguments[0])
        if name == "torch._utils._rebuild_tensor":
            return self._tensor(*arguments)
        if name == "torch._utils._rebuild_tensor_v2":
            *place, requires_grad, hooks = arguments[:6]
            self._check_plain(requires_grad, hooks, *arguments[6:])
            return self._tensor(*place)
        if name == "torch._utils._rebuild_parameter":
            data, requires_grad, hooks = arguments
            self._check_plain(requires_grad, hooks)
            return data
        raise self._refused(name)

    def _check_plain(self, requires_grad: Any, *more: Any) -> None:
        if not isinstance(requires_grad, bool) or any(more):
            raise self._odd("a tensor with hooks or flags")

    def _global(self, argument: str) -> _Global:
        name = argument.replace(" ", ".")
        if name in _ODD:
            raise self._odd(_ODD[name])
        if name not in _KNOWN:
            raise self._refused(name)
        return _Global(name)

    def _tensor(self, storage: Any, offset: Any, shape: Any, stride: Any) -> Tensor:
        begin, shape, stride = _size(offset), _sizes(shape), _sizes(stride)
        sees = sum((n - 1) * s for n, s in zip(shape, stride, strict=True)) + 1 if 0 not in shape else 0
        text = "×".join(map(str, shape)) or "()"
        if begin + sees > _checked(storage, Storage).numel:
            raise UserError(
                f"{self.path} is damaged: a tensor of shape {text} looks past the {storage.numel} numbers of its "
                "storage. Get the file again"
            )
        if math.prod(shape) > sees:
            raise UserError(
                f"{self.path}: a tensor of shape {text} repeats the {sees} numbers it has: it would unpack to any "
                "size; the file is damaged"
            )
        return Tensor(storage, shape, (begin, begin + sees))

    def _storage(self, kind: Any, cls: Any, key: Any, location: Any, numel: Any, *view: Any) -> Storage:
        if kind != "storage" or any(v is not None for v in view) or not isinstance(location, str):
            raise UserError(f"{self.path}: its tensors are views of each other, as torch wrote before 2017")
        dtype = _STORAGES[_checked(cls, _Global).name.rpartition(".")[2]]
        storage = Storage(_checked(key, str), dtype, _size(numel))
        if self.storages.setdefault(storage.key, storage) != storage:
            raise UserError(f"{self.path} is damaged: its storage {storage.key!r:.40} has two sizes or types")
        return storage

    def _odd(self, what: str) -> UserError:
        return UserError(f"{self.path} holds {what}: expected plain dense tensors and settings alone")

    def _refused(self, name: str) -> UserError:
        return UserError(
            f"{self.path} holds more than tensors and settings: it asks for {name!r:.120}, which is never executed. "
            "Get it again from a source you trust"
        )


def _checked(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(type(value).__name__)
    return value


def _size(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**62:
        raise ValueError("size")
    return value


def _sizes(values: Any) -> tuple[int, ...]:
    if len(values) > 8:
        raise ValueError("dimensions")
    return tuple(_size(value) for value in _checked(values, tuple | list))

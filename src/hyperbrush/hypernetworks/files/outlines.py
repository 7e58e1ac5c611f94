"""What stands for the things in a file that are not read: tensors as shapes, classes as names."""

from dataclasses import dataclass

STORAGES = {
    "DoubleStorage": ("float64", 8),
    "FloatStorage": ("float32", 4),
    "HalfStorage": ("float16", 2),
    "BFloat16Storage": ("bfloat16", 2),
    "LongStorage": ("int64", 8),
    "IntStorage": ("int32", 4),
    "ShortStorage": ("int16", 2),
    "CharStorage": ("int8", 1),
    "ByteStorage": ("uint8", 1),
    "BoolStorage": ("bool", 1),
    "ComplexFloatStorage": ("complex64", 8),
    "ComplexDoubleStorage": ("complex128", 16),
    "QInt8Storage": ("qint8", 1),
    "QUInt8Storage": ("quint8", 1),
    "QInt32Storage": ("qint32", 4),
    "UntypedStorage": ("uint8", 1),
}
# Tensors that are no plain ones: never read, so their arguments do not matter.
ODD = {
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_qtensor": "a quantised tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "a tensor without content",
    "torch._utils._rebuild_tensor_v3": "a tensor of an unusual type",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    "torch._utils._rebuild_wrapper_subclass": "a tensor of a class of its own",
    "torch._utils._rebuild_device_tensor_from_numpy": "a tensor of another device",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": "a tensor of another device",
    "torch._tensor._rebuild_from_type_v2": "a tensor of a class of its own",
    "torch.device": "a device",
    "torch.serialization._get_layout": "a tensor layout",
    "builtins.set": "a set",
    "__builtin__.set": "a set",
}
KNOWN = {
    "collections.OrderedDict",
    "torch.Size",
    "torch.nn.parameter.Parameter",
    "torch.Tensor",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    *ODD,
}
DTYPES = {"torch." + dtype for dtype, _ in STORAGES.values()} | {
    "torch.uint16",
    "torch.uint32",
    "torch.uint64",
    "torch.float8_e4m3fn",
    "torch.float8_e5m2",
    "torch.per_tensor_affine",
    "torch.per_channel_affine",
}


@dataclass(frozen=True)
class Global:
    """A class or function that the pickle names; never looked up."""

    name: str


@dataclass(frozen=True)
class Storage:
    """The place of a tensor's numbers in the file."""

    key: str
    dtype: str  # torch's name, "float32"
    element_size: int  # bytes
    numel: int

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.numel * self.element_size


@dataclass(frozen=True)
class Tensor:
    """A tensor that was not read: offset and stride in elements, within its storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def dtype(self) -> str:
        """Torch's name of the element type."""
        return self.storage.dtype

    @property
    def span(self) -> tuple[int, int]:
        """First and last+1 element of the storage that it sees."""
        if 0 in self.shape:
            return self.offset, self.offset
        return self.offset, self.offset + 1 + sum(
            (n - 1) * s for n, s in zip(self.shape, self.stride, strict=True)
        )

    @property
    def numel(self) -> int:
        """Number of elements."""
        count = 1
        for n in self.shape:
            count *= n
        return count


@dataclass(frozen=True)
class Odd:
    """Something torch can read and a hypernetwork cannot hold."""

    what: str

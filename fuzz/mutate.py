"""Changes to valid inputs that keep enough of their structure to get past the first check."""

import io
import json
import struct
import zipfile
import zlib
from random import Random

_NUMBERS = (0, 1, 7, 8, 16, 255, 256, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
_VALUES = (
    None,
    True,
    -1,
    0,
    0.5,
    1e300,
    10**30,
    "",
    "relu",
    "x" * 5000,
    [],
    [1, 2, 1],
    {},
    [[1]],
    "\x1b[2J",
    "8",
)


def mutate(data: bytes, words: tuple[bytes, ...], random: Random) -> bytes:
    """One to four changes: of the bytes, or of what is inside the zip or the header, made whole again."""
    inside = _of_zip if data[:2] == b"PK" else _of_header if data[8:9] == b"{" else None
    if inside is not None and random.random() < 0.7:
        try:
            return inside(data, words, random)
        except (
            ValueError,
            LookupError,
            struct.error,
            zlib.error,
            zipfile.BadZipFile,
            RuntimeError,
            EOFError,
            OSError,
        ):
            pass  # already too broken for that
    return _bytes(data, words, random)


def _bytes(data: bytes, words: tuple[bytes, ...], random: Random, most: int = 4) -> bytes:
    raw = bytearray(data)
    for _ in range(random.randint(1, most)):
        at = random.randrange(len(raw) + 1)
        end = min(len(raw), at + random.choice((1, 1, 2, 4, 8, 40)))
        kind = random.randrange(7)
        if kind == 0 and at < len(raw):
            raw[at] ^= 1 << random.randrange(8)
        elif kind == 1 and at < len(raw):
            raw[at] = random.randrange(256)
        elif kind == 2:
            del raw[at:end]
        elif kind == 3:
            raw[at:at] = random.choice(words)
        elif kind == 4:
            raw[at:end] = random.choice(words)
        elif kind == 5:
            raw[at:at] = raw[at:end] * random.choice((1, 2, 30))
        else:
            form = random.choice("BHIQ")
            number = random.choice(_NUMBERS) % 256 ** struct.calcsize("<" + form)
            raw[at : at + struct.calcsize("<" + form)] = struct.pack("<" + form, number)
    return bytes(raw)


def _of_zip(data: bytes, words: tuple[bytes, ...], random: Random) -> bytes:
    """Changes one member, mostly the pickle, or the members' names and number."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        members = [(info.filename, file.read(info)) for info in file.infolist()]
    at = next((i for i, (name, _) in enumerate(members) if name.endswith("data.pkl")), 0)
    if random.random() < 0.2:
        at = random.randrange(len(members))
    name, content = members[at]
    kind = random.randrange(10)
    if kind == 0:
        del members[at]
    elif kind == 1:
        members[at] = (_bytes(name.encode(), (b"..", b"/", b"\\", b"data"), random).decode("latin1"), content)
    elif kind == 2:
        members.append(
            (random.choice(("a/data/9", "../x", "archive/DATA.pkl", "archive/constants.pkl")), b"1")
        )
    else:
        members[at] = (name, _bytes(content, words, random))
    buffer = io.BytesIO()
    method = random.choice((zipfile.ZIP_STORED,) * 9 + (zipfile.ZIP_DEFLATED,))
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, content in members:
            name = name.split("\0")[0] or "a"
            if name not in file.namelist():
                file.writestr(name, content)
    return buffer.getvalue()


def _of_header(data: bytes, words: tuple[bytes, ...], random: Random) -> bytes:
    """Changes the header's JSON, mostly our config, and writes its length anew."""
    length = struct.unpack("<Q", data[:8])[0]
    header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
    kind = random.randrange(6)
    name = random.choice(list(header))
    own = header["__metadata__"]
    if kind < 3:
        config = json.loads(own["hyperbrush.config"])
        config[random.choice([*config, "dropout_structure", "new"])] = random.choice(_VALUES)
        if random.random() < 0.3:
            config["widths"] = {
                random.choice(("8", "08", "16", "x", "a.attn2")): random.choice((8, 16, -8, "8", None))
            }
        own["hyperbrush.config"] = json.dumps(config)
        if random.random() < 0.2:
            own["hyperbrush.config"] = _bytes(own["hyperbrush.config"].encode(), words, random).decode(
                "latin1"
            )
    elif kind == 3 and name != "__metadata__":
        header[name][random.choice(("dtype", "shape", "data_offsets"))] = random.choice(
            ("F16", "I64", "F8_E5M2", "BOOL", [0, 0], [8, 16], [2**63, 2], [-1], [], None)
        )
    elif kind == 4 and name != "__metadata__":
        header[_bytes(name.encode(), (b".", b"key", b"9"), random, 1).decode("latin1")] = header.pop(name)
    else:
        raw = _bytes(json.dumps(header).encode(), words, random)
        return struct.pack("<Q", len(raw)) + raw + rest
    raw = json.dumps(header).encode()
    if random.random() < 0.1:
        rest = _bytes(rest, words, random)
    return struct.pack("<Q", len(raw)) + raw + rest

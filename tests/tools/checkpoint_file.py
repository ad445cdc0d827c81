"""Writes small checkpoint files as docs/checkpoint-format.md says, for looking at what is made of them."""
import ctypes
import ctypes.util
import functools
import json
import struct

PAGE = 4096
RAM_AT = 0x200000
EXTENT = 512 * PAGE


@functools.cache
def xxh3():
    function = ctypes.CDLL(ctypes.util.find_library("xxhash") or "libxxhash.so.0").XXH3_64bits
    function.restype = ctypes.c_uint64
    function.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
    return function


def digest(data):
    return xxh3()(bytes(data), len(data))


def record(name, instance=0, version=1):
    encoded = name.encode()
    body = struct.pack("<HIB", version, instance, len(encoded)) + encoded
    return struct.pack("<I", len(body)) + body


def sealed(block):
    block = block.ljust(4088, b"\0")
    return block + struct.pack("<Q", digest(block))


def write(path, memory_mib=4, pages=None, domain=None, disks=None, records=(), version=1, features=0, sections=(), taken_ns=10**18):
    """`pages`: {number: contents}; `sections`: more of them, (kind, flags, contents)."""
    pages = pages or {0: b"first".ljust(PAGE, b"!"), 700: b"second".ljust(PAGE, b"?")}
    ram = memory_mib << 20
    described = {"domain": {"name": "TestGuest", "uuid": "cc0029f5-10a1-e6d0-3c92-19b0ea021f21",
                            "memory_mib": memory_mib, "vcpus": 1, **(domain or {})},
                 "regions": [{"gpa": 0, "size": ram, "offset": 0}], "taken_on": "host1", "program": "ferry 0.1.0",
                 **({} if disks is None else {"disks": disks})}
    table = b""
    for extent in range(-(-ram // EXTENT)):
        inside = sorted(number for number in pages if number // 512 == extent)
        stored = sum(1 << number % 512 for number in inside)
        contents = b"".join(pages[number] for number in inside)
        place = (1, 0, RAM_AT + extent * EXTENT, min(EXTENT, ram - extent * EXTENT), digest(contents))
        table += struct.pack("<IIQQQ", *(place if inside else (0, 0, 0, 0, 0))) + stored.to_bytes(64, "little")
    parts = [(1, 1, json.dumps(described).encode()), (2, 1, b"".join(records)), (3, 1, table), *sections]
    entries, tail, identity = b"", b"", bytes(range(16))
    for kind, flags, contents in parts:
        entries += struct.pack("<IIQQQ", kind, flags, RAM_AT + ram + len(tail), len(contents), digest(contents))
        tail += contents + bytes(-len(contents) % PAGE)
    size = RAM_AT + ram + len(tail) + PAGE
    header = b"FERRYCKP" + struct.pack("<IIIIQQQqQII", version, features, 0, PAGE, size, RAM_AT, ram, taken_ns,
                                       len(pages), len(parts), 0) + identity
    with open(path, "wb") as file:
        file.write(sealed(header.ljust(128, b"\0") + entries))
        for number, contents in pages.items():
            file.seek(RAM_AT + number * PAGE)
            file.write(contents)
        file.seek(RAM_AT + ram)
        file.write(tail + sealed(b"FERRYEND" + struct.pack("<Q", size) + identity))
    return path


def portrait(path, device, mode="w"):
    """What a checkpoint says of a disk, without what would save a look at what is on it."""
    with open(path, "rb") as file:
        content = file.read()
    size, grain = len(content), 64 << 10
    content += bytes(-size % grain)
    whole = b"".join(struct.pack("<Q", at) + content[at:at + grain] for at in range(0, size, grain) if any(content[at:at + grain]))
    return {"device": device, "mode": mode, "size": size, "block_size": 512, "taken_ns": 0,
            "content": {"whole": f"{digest(whole):016x}"}}


def flip(path, at):
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def alter(path, description=None, state=None):
    """Passes the description (as an object) and the device state of a checkpoint through functions, and seals it again."""
    with open(path, "r+b") as file:
        header = bytearray(file.read(PAGE))
        ram = struct.unpack_from("<Q", header, 40)[0]
        entries, tail = bytearray(), b""
        for number in range(struct.unpack_from("<I", header, 64)[0]):
            kind, flags, offset, length, _digest = struct.unpack_from("<IIQQQ", header, 128 + 32 * number)
            file.seek(offset)
            contents = file.read(length)
            if kind == 1 and description:
                contents = json.dumps(description(json.loads(contents))).encode()
            if kind == 2 and state:
                contents = bytes(state(bytearray(contents)))
            entries += struct.pack("<IIQQQ", kind, flags, RAM_AT + ram + len(tail), len(contents), digest(contents))
            tail += contents + bytes(-len(contents) % PAGE)
        size = RAM_AT + ram + len(tail) + PAGE
        struct.pack_into("<Q", header, 24, size)
        header[128:128 + len(entries)] = entries
        file.seek(0)
        file.write(sealed(bytes(header[:4088])))
        file.truncate(RAM_AT + ram)
        file.seek(RAM_AT + ram)
        file.write(tail + sealed(b"FERRYEND" + struct.pack("<Q", size) + bytes(header[72:88])))


def number_after(records, *names):
    """Where the number of the last named field lies; each name is looked for behind the one before. A name may be
    (name, value): the field that has this value (u32)."""
    at = 0
    for name in names:
        name, value = name if isinstance(name, tuple) else (name, None)
        encoded = bytes([len(name)]) + name.encode()
        if value is not None:
            encoded += struct.pack("<II", 4, value)
        at = records.index(encoded, at) + len(encoded) + (4 if value is None else 0)
    return at

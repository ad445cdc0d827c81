#!/usr/bin/python3
"""Looks at a Ferry checkpoint without Ferry: docs/checkpoint-format.md, and nothing else, is what this follows.

    ferry-checkpoint.py info FILE           what it says of itself
    ferry-checkpoint.py verify FILE         checks every digest; exit status 1 where one is wrong
    ferry-checkpoint.py ram FILE OUTPUT     writes the guest's RAM as one (sparse) image
    ferry-checkpoint.py state FILE OUTPUT   writes the device-state records
"""
import argparse
import ctypes
import ctypes.util
import datetime
import json
import struct
import sys

PAGE = 4096
EXTENT_PAGES = 512
RAM_AT = 0x200000
KINDS = {1: "description", 2: "device state", 3: "extents"}


class Damaged(Exception):
    """The verdict on a file."""


def xxhash():
    library = ctypes.CDLL(ctypes.util.find_library("xxhash") or "libxxhash.so.0")
    library.XXH3_64bits.restype = ctypes.c_uint64
    library.XXH3_64bits.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
    return lambda data: library.XXH3_64bits(bytes(data), len(data))


DIGEST = xxhash()
ZSTD = 1  # mandatory feature bit 0


def zstd_frame(frame, size):
    """What a frame (RFC 8878) holds, which must be `size` bytes; None where it is not that."""
    library = ctypes.CDLL(ctypes.util.find_library("zstd") or "libzstd.so.1")
    library.ZSTD_decompress.restype = ctypes.c_size_t
    library.ZSTD_decompress.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t]
    room = ctypes.create_string_buffer(size)
    return room.raw if library.ZSTD_decompress(room, size, frame, len(frame)) == size else None


class Checkpoint:
    def __init__(self, file):
        self.file = file
        header = self.at(0, PAGE, "header")
        if header == bytes(PAGE):
            raise Damaged("never finished")
        if header[:8] != b"FERRYCKP":
            raise Damaged("not a checkpoint")
        (self.version, mandatory, _optional, page, self.file_size, ram_at, self.ram_size, self.taken_ns,
         self.stored_pages, sections) = struct.unpack_from("<IIIIQQQqQI", header, 8)
        if self.version != 1 or mandatory & ~ZSTD:
            raise Damaged(f"written by a newer Ferry (version {self.version}, features {mandatory:#x})")
        if DIGEST(header[:4088]) != struct.unpack_from("<Q", header, 4088)[0]:
            raise Damaged("header damaged")
        if page != PAGE or ram_at != RAM_AT or sections > 16 or not self.ram_size or self.ram_size % PAGE:
            raise Damaged("header damaged")
        self.id = header[72:88]
        self.compressed = bool(mandatory & ZSTD)
        self.check_end()
        self.sections = {}
        for i in range(sections):
            kind, flags, offset, length, digest = struct.unpack_from("<IIQQQ", header, 128 + 32 * i)
            if kind not in KINDS:
                if flags & 1:
                    raise Damaged(f"written by a newer Ferry (section {kind})")
                continue
            data = self.at(offset, length, KINDS[kind])
            if kind in self.sections or DIGEST(data) != digest:
                raise Damaged(f"{KINDS[kind]} damaged")
            self.sections[kind] = data
        missing = [name for kind, name in KINDS.items() if kind not in self.sections]
        if missing:
            raise Damaged(f"no {missing[0]}")
        self.description = json.loads(self.sections[1])
        self.extents = self.read_extents(self.sections[3])

    def at(self, offset, length, what):
        self.file.seek(offset)
        data = self.file.read(length)
        if len(data) != length:
            raise Damaged(f"truncated within its {what}")
        return data

    def check_end(self):
        size = self.file.seek(0, 2)
        if size < self.file_size:
            raise Damaged(f"truncated: {size} of its {self.file_size} bytes are there")
        if size > self.file_size:
            raise Damaged("longer than it was written")
        footer = self.at(self.file_size - PAGE, PAGE, "footer")
        if (footer[:8] != b"FERRYEND" or struct.unpack_from("<Q", footer, 8)[0] != self.file_size
                or footer[16:32] != self.id or DIGEST(footer[:4088]) != struct.unpack_from("<Q", footer, 4088)[0]):
            raise Damaged("footer damaged")

    def read_extents(self, table):
        count = -(-self.ram_size // (EXTENT_PAGES * PAGE))
        if len(table) != 96 * count:
            raise Damaged("extent table damaged")
        extents = []
        for i in range(count):
            kind, _zero, offset, length, digest = struct.unpack_from("<IIQQQ", table, 96 * i)
            stored = int.from_bytes(table[96 * i + 32:96 * i + 96], "little")
            pages = [bit for bit in range(EXTENT_PAGES) if stored >> bit & 1]
            place = RAM_AT + i * EXTENT_PAGES * PAGE
            most = min(EXTENT_PAGES * PAGE, self.ram_size - i * EXTENT_PAGES * PAGE)
            lengths = {0: range(1 << 62), 1: range(most, most + 1)}
            if self.compressed:
                lengths[2] = range(1, most + 1)
            if kind not in lengths or length not in lengths[kind] or (kind == 0) != (not pages) or (kind and offset != place):
                raise Damaged("extent table damaged")
            if pages and (i * EXTENT_PAGES + pages[-1]) * PAGE >= self.ram_size:
                raise Damaged("extent table damaged")
            extents.append((kind, offset, length, digest, pages))
        if sum(len(pages) for _, _, _, _, pages in extents) != self.stored_pages:
            raise Damaged("extent table damaged")
        return extents

    def memory(self):
        """Yields (page number, contents) of every stored page; raises where an extent is damaged."""
        for i, (kind, offset, length, digest, pages) in enumerate(self.extents):
            if kind == 2:
                contents = zstd_frame(self.at(offset, length, "memory"), len(pages) * PAGE)
            else:
                contents = b"".join(self.at(offset + page * PAGE, PAGE, "memory") for page in pages)
            if pages and (contents is None or DIGEST(contents) != digest):
                raise Damaged(f"memory in bytes {offset} to {offset + length - 1} damaged")
            for number, page in enumerate(pages):
                yield i * EXTENT_PAGES + page, contents[number * PAGE:(number + 1) * PAGE]

    def records(self):
        """Yields (name, instance, version, length) of the device-state records."""
        data, at = self.sections[2], 0
        while at < len(data):
            try:
                length, version, instance, name_length = struct.unpack_from("<IHIB", data, at)
            except struct.error as error:
                raise Damaged("device state cut short") from error
            if at + 4 + length > len(data):
                raise Damaged("device state cut short")
            yield data[at + 11:at + 11 + name_length].decode(), instance, version, length
            at += 4 + length


def info(checkpoint, _output):
    domain = checkpoint.description["domain"]
    taken = datetime.datetime.fromtimestamp(checkpoint.taken_ns / 1e9, datetime.timezone.utc)
    print(f"name      {domain['name']}")
    print(f"uuid      {domain['uuid']}")
    print(f"memory    {checkpoint.ram_size >> 20} MiB, {checkpoint.stored_pages * PAGE >> 20} MiB of it stored")
    print(f"taken     {taken:%Y-%m-%d %H:%M:%S} UTC on {checkpoint.description.get('taken_on', '?')}"
          f" by {checkpoint.description.get('program', '?')}")
    print(f"size      {checkpoint.file_size}{', compressed' if checkpoint.compressed else ''}")
    try:
        for name, instance, version, length in checkpoint.records():
            print(f"device    {name} {instance} (version {version}, {length} bytes)")
    except Damaged as verdict:
        print(f"device    not records: {verdict}")


def verify(checkpoint, _output):
    for _page in checkpoint.memory():
        pass
    print("whole")


def ram(checkpoint, output):
    with open(output, "wb") as image:
        image.truncate(checkpoint.ram_size)
        for page, content in checkpoint.memory():
            image.seek(page * PAGE)
            image.write(content)


def state(checkpoint, output):
    with open(output, "wb") as records:
        records.write(checkpoint.sections[2])


def main():
    commands = {"info": info, "verify": verify, "ram": ram, "state": state}
    parser = argparse.ArgumentParser(description="Looks at a Ferry checkpoint without Ferry.")
    parser.add_argument("command", choices=commands)
    parser.add_argument("file")
    parser.add_argument("output", nargs="?")
    arguments = parser.parse_args()
    if arguments.command in ("ram", "state") and not arguments.output:
        parser.error(f"{arguments.command} needs an OUTPUT")
    try:
        with open(arguments.file, "rb") as file:
            commands[arguments.command](Checkpoint(file), arguments.output)
    except (Damaged, OSError, ValueError, KeyError, TypeError) as verdict:
        print(f"{arguments.file}: {verdict}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The lab's kernel, taken from Debian's package: the ELF inside the bzImage, and modules in loading order."""

import ctypes
import lzma
import re
import struct
import subprocess
from pathlib import Path

from .agent import LabError

LZ4_LEGACY_MAGIC = 0x184C2102
LZ4_LEGACY_BLOCK = 8 << 20
ZSTD_MAGIC = 0xFD2FB528


def _unpack_lz4(data):
    """The legacy LZ4 frame that the kernel's build makes: blocks of 8 MiB, each after its length."""
    library = ctypes.CDLL("liblz4.so.1")
    target = ctypes.create_string_buffer(LZ4_LEGACY_BLOCK)
    parts, at = [], 4
    while at + 4 <= len(data):
        length, = struct.unpack_from("<I", data, at)
        at += 4
        if length == 0 or at + length > len(data):
            break
        size = library.LZ4_decompress_safe(data[at : at + length], target, length, LZ4_LEGACY_BLOCK)
        if size < 0:
            raise LabError("the kernel's LZ4 payload is damaged")
        parts.append(target.raw[:size])
        at += length
        if size < LZ4_LEGACY_BLOCK:
            break
    return b"".join(parts)


def elf_of_bzimage(path):
    """The uncompressed kernel in a bzImage (Linux x86 boot protocol: payload_offset, payload_length)."""
    image = Path(path).read_bytes()
    if image[0x202:0x206] != b"HdrS":
        raise LabError(f"{path} is no bzImage")
    sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (sectors + 1) * 512 + offset
    payload = image[start : start + length]
    magic, = struct.unpack_from("<I", payload)
    if magic == LZ4_LEGACY_MAGIC:
        elf = _unpack_lz4(payload)
    elif magic == ZSTD_MAGIC:  # behind it stands the size
        elf = subprocess.run(["zstd", "-dcq"], input=payload[:-4], stdout=subprocess.PIPE, check=True, timeout=300).stdout
    else:
        raise LabError(f"{path}: the kernel is packed neither with LZ4 nor with zstd, which is all the lab knows")
    if elf[:4] != b"\x7fELF":
        raise LabError(f"{path}: the payload is no ELF file")
    return elf


class Modules:
    """The modules of an unpacked kernel package."""

    def __init__(self, tree):
        self.root = next(entry for parent in ("lib/modules", "usr/lib/modules") if (tree / parent).is_dir()
                         for entry in (tree / parent).iterdir())
        self.release = self.root.name
        self.paths = {p.name.split(".")[0].replace("-", "_"): p for p in self.root.rglob("*.ko*")}
        self.builtin = {Path(line).stem.replace("-", "_")
                        for line in (self.root / "modules.builtin").read_text().split()}

    def _content(self, name):
        """Without the packing that Debian 13 has."""
        content = self.paths[name].read_bytes()
        return lzma.decompress(content) if self.paths[name].suffix == ".xz" else content

    def _place(self, name):
        path = self.paths[name].relative_to(self.root)
        return path.with_suffix("") if path.suffix == ".xz" else path

    def _depends(self, name):
        match = re.search(rb"\0depends=([^\0]*)\0", self._content(name))
        return [d.replace("-", "_") for d in match.group(1).decode().split(",") if d] if match else []

    def closure(self, names):
        """The modules wanted and what they need, in loading order; built-in ones are left out."""
        order = []

        def visit(name):
            name = name.replace("-", "_")
            if name in self.builtin or name in order:
                return
            if name not in self.paths:
                raise LabError(f"the kernel {self.release} has no module {name}")
            for dependency in self._depends(name):
                visit(dependency)
            order.append(name)

        for wanted in names:
            visit(wanted)
        return order

    def add_to(self, tree, names):
        """Puts modules into a Tree, with the list of dependencies that modprobe reads; their loading order."""
        order = self.closure(names)
        lines = []
        for name in order:
            relative = self._place(name)
            tree.text(f"usr/lib/modules/{self.release}/{relative}", self._content(name))
            needs = [str(self._place(d)) for d in reversed(self.closure([name])[:-1])]
            lines.append(f"{relative}: {' '.join(needs)}".rstrip())
        tree.text(f"usr/lib/modules/{self.release}/modules.dep", "\n".join(lines) + "\n")
        return [f"/usr/lib/modules/{self.release}/{self._place(n)}" for n in order]

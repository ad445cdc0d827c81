"""File trees for machines: what goes in, with the libraries it needs, written as a cpio archive.

The archive is in the "newc" format that Linux takes as initramfs (kernel documentation,
driver-api/early-userspace/buffer-format). Everything in it belongs to root, whoever makes it.
"""

import os
import stat
import struct
from pathlib import Path

from .agent import LabError

SYSTEM_LIBRARIES = ["/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/usr/local/lib/x86_64-linux-gnu", "/lib64"]


def needed_libraries(path):
    """The DT_NEEDED names of an ELF file (System V ABI, chapter 5) and its interpreter, if any."""
    with open(path, "rb") as file:
        if file.read(4) != b"\x7fELF":
            return [], None
        file.seek(0)
        image = file.read()
    offset, = struct.unpack_from("<Q", image, 32)
    size, count = struct.unpack_from("<HH", image, 54)
    loads, dynamic, interpreter = [], None, None
    for i in range(count):
        kind, _, start, address, _, length = struct.unpack_from("<IIQQQQ", image, offset + i * size)
        if kind == 1:
            loads.append((address, start, length))
        elif kind == 2:
            dynamic = (start, length)
        elif kind == 3:
            interpreter = image[start : start + length].rstrip(b"\0").decode()
    if not dynamic:
        return [], None
    names, strings = [], 0
    for at in range(dynamic[0], dynamic[0] + dynamic[1], 16):
        tag, value = struct.unpack_from("<QQ", image, at)
        if tag == 1:
            names.append(value)
        elif tag == 5:
            strings = next(start + value - address for address, start, length in loads
                           if address <= value < address + length)
    text = [image[strings + n : image.index(b"\0", strings + n)].decode() for n in names]
    return text, interpreter


class Tree:
    """A file tree to be: path without leading slash → entry."""

    def __init__(self, library_trees=()):
        self.entries = {}
        self.searched = SYSTEM_LIBRARIES + [
            str(tree / part) for tree in library_trees
            for part in ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/systemd")
        ]

    def directory(self, path, mode=0o755):
        path = path.strip("/")
        if path and path not in self.entries:
            self._parents(path)
            self.entries[path] = ("directory", mode, None)

    def _parents(self, path):
        parent = os.path.dirname(path)
        if parent and parent not in self.entries:
            self.directory(parent)

    def link(self, path, target):
        path = path.strip("/")
        self._parents(path)
        self.entries[path] = ("link", 0o777, target)

    def text(self, path, content, mode=0o644):
        path = path.strip("/")
        self._parents(path)
        self.entries[path] = ("bytes", mode, content.encode() if isinstance(content, str) else content)

    def file(self, path, source, mode=None):
        """A copy of a file of this machine; for an ELF file, also the libraries it needs."""
        path = path.strip("/")
        self._parents(path)
        source = os.path.realpath(source)
        if mode is None:
            mode = 0o755 if os.stat(source).st_mode & stat.S_IXUSR else 0o644
        self.entries[path] = ("file", mode, source)
        names, interpreter = needed_libraries(source)
        if interpreter and interpreter.strip("/") not in self.entries:
            self.file("usr" + interpreter, interpreter, 0o755)
        for name in names:
            self.library(name, source)

    def library(self, name, user):
        """A library that a file of the tree needs, as its ELF header says, or only once it runs."""
        target = f"usr/lib/x86_64-linux-gnu/{name}"
        if target in self.entries or name.startswith("ld-linux"):
            return
        for directory in self.searched:
            candidate = os.path.join(directory, name)
            if os.path.exists(candidate):
                self.file(target, candidate, 0o755)
                return
        raise LabError(f"{user} needs the library {name}, which is neither installed here nor in the lab's packages")

    def copy_tree(self, source, prefix=""):
        """All of a directory of this machine, under `prefix`."""
        source = Path(source)
        for path in sorted(source.rglob("*")):
            name = os.path.join(prefix, str(path.relative_to(source)))
            if path.is_symlink():
                self.link(name, os.readlink(path))
            elif path.is_dir():
                self.directory(name)
            else:
                self.file(name, path)

    def without(self, names):
        """Drops the files that another archive already has."""
        for name in list(self.entries):
            if name in names and self.entries[name][0] == "file":
                del self.entries[name]

    def write_cpio(self, path):
        with open(path, "wb") as out:
            inode = 0

            def record(name, mode, content):
                nonlocal inode
                inode += 1
                encoded = name.encode() + b"\0"
                fields = [inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0]
                out.write(b"070701" + b"".join(b"%08x" % f for f in fields) + encoded)
                out.write(bytes(-(110 + len(encoded)) % 4))
                out.write(content)
                out.write(bytes(-len(content) % 4))

            kinds = {"directory": stat.S_IFDIR, "link": stat.S_IFLNK, "bytes": stat.S_IFREG, "file": stat.S_IFREG}
            for name in sorted(self.entries):
                kind, mode, what = self.entries[name]
                if kind == "file":
                    what = Path(what).read_bytes()
                elif kind == "link":
                    what = what.encode()
                record(name, kinds[kind] | mode, what or b"")
            record("TRAILER!!!", 0, b"")
            out.write(bytes(-out.tell() % 512))

    def write_directory(self, path):
        """As files of this machine (the owner is whoever does it)."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        for name in sorted(self.entries):
            kind, mode, what = self.entries[name]
            target = path / name
            if kind == "directory":
                target.mkdir(parents=True, exist_ok=True)
                target.chmod(mode)
            elif kind == "link":
                target.symlink_to(what)
            else:
                target.write_bytes(Path(what).read_bytes() if kind == "file" else what)
                target.chmod(mode)

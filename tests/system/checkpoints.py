"""Checkpoints on the lab's hosts, changed."""

import shutil
import struct

import checkpoint_file
from checkpoint_file import PAGE, RAM_AT


def put_ends(host, here, path):
    """A checkpoint without its memory's contents; below `path` there may be some already."""
    with open(here, "rb") as file:
        header = file.read(PAGE)
        behind = RAM_AT + struct.unpack_from("<Q", header, 40)[0]
        file.seek(behind)
        host.run(f"truncate -s {behind} {path} && dd of={path} bs={PAGE} seek={behind // PAGE} conv=notrunc 2>/dev/null", stdin=file.read())
    host.run(f"dd of={path} bs={PAGE} conv=notrunc 2>/dev/null", stdin=header)


def get_ends(host, path, here):
    header = host.run(f"dd if={path} bs={PAGE} count=1 2>/dev/null").stdout_bytes
    behind = RAM_AT + struct.unpack_from("<Q", header, 40)[0]
    with open(here, "wb") as file:
        file.write(header)
        file.seek(behind)
        file.write(host.run(f"dd if={path} bs={PAGE} skip={behind // PAGE} 2>/dev/null").stdout_bytes)


def changed(host, path, ends, description=None, state=None, header=None):
    """Another checkpoint beside this one, of which some is changed and sealed again; its ends are in the file `ends`."""
    here = f"{ends}.changed"
    shutil.copyfile(ends, here)
    checkpoint_file.alter(here, description, state)
    if header:
        with open(here, "r+b") as file:
            block = header(bytearray(file.read(PAGE)))
            file.seek(0)
            file.write(checkpoint_file.sealed(bytes(block[:4088])))
    host.run(f"cp --sparse=always {path} {path}.changed")
    put_ends(host, here, f"{path}.changed")
    return f"{path}.changed"

"""A file system with one file, `disk`, whose storage stops answering when told to: a server of FUSE (include/uapi/linux/fuse.h)."""
import ctypes
import errno
import os
import struct
import subprocess
import threading

from rig import Xend

SIZE = 1 << 20
LOOKUP, FORGET, GETATTR, OPEN, READ, RELEASE, FLUSH, INIT, OPENDIR, RELEASEDIR, ACCESS, BATCH_FORGET = 1, 2, 3, 14, 15, 18, 25, 26, 27, 29, 34, 42


class DeadStorage:
    def __init__(self, place):
        self.place = place
        self.answers = threading.Event()
        self.answers.set()
        self.device = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={self.device},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b"fuse", str(place).encode(), b"fuse", 0, options) < 0:
            raise OSError(ctypes.get_errno(), "mount")
        threading.Thread(target=self.serve, daemon=True).start()

    def close(self):
        self.answers.set()
        subprocess.run(["umount", "-l", self.place], check=False)

    def serve(self):
        try:
            while True:
                request = os.read(self.device, 1 << 20)
                self.answers.wait()
                _, opcode, unique, node = struct.unpack_from("<IIQQ", request)
                if opcode in (FORGET, BATCH_FORGET):
                    continue
                answer = self.answer(opcode, node, request[40:])
                code, body = (answer, b"") if isinstance(answer, int) else (0, answer)
                os.write(self.device, struct.pack("<IiQ", 16 + len(body), -code, unique) + body)
        except OSError as gone:
            assert gone.errno in (errno.ENODEV, errno.EBADF), gone

    @staticmethod
    def attributes(node):
        directory = node == 1
        return struct.pack("<6Q10I", node, 0 if directory else SIZE, 0, 0, 0, 0, 0, 0, 0, 0o40755 if directory else 0o100644, 1, 0, 0, 0, 4096, 0)

    def answer(self, opcode, node, body):
        if opcode == INIT:
            return struct.pack("<IIIIHHIIHHI7I", 7, 31, 65536, 0, 16, 12, 65536, 1, 0, 0, 0, *[0] * 7)
        if opcode == LOOKUP:
            return struct.pack("<4Q2I", 2, 1, 0, 0, 0, 0) + self.attributes(2) if body == b"disk\0" else errno.ENOENT
        if opcode == GETATTR:
            return struct.pack("<Q2I", 0, 0, 0) + self.attributes(node)
        if opcode in (OPEN, OPENDIR):
            return struct.pack("<Q2I", 0, 0, 0)
        if opcode == READ:
            return bytes(struct.unpack_from("<QQI", body)[2])
        return b"" if opcode in (RELEASE, RELEASEDIR, FLUSH, ACCESS) else errno.ENOSYS


def set_up(test, **settings):
    """A xend (rig.py), and a guest's disk on storage that may be away: the test's `xend`, `storage` and `disk`."""
    test.xend = Xend(**settings)
    test.addCleanup(test.xend.close)
    place = test.xend.root / "nfs"
    place.mkdir()
    test.storage = DeadStorage(place)
    test.addCleanup(test.storage.close)
    test.disk = [f"file:{place}/disk,xvda,w"]

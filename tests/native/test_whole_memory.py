"""All of a guest's memory, byte by byte, as its process has it here and as it arrives: after every kind of move, save and restore.

The guest writes once to pages all over its memory, low and high, so that a page which is copied too early, or not at all, never comes
right by itself. What is compared is not what was sent but the two memory files (/proc/PID/fd), while both guests stand still: of a
migration when COMMIT is on its way and held up, of a saved guest when it is restored paused. Some moves of each kind, at random;
FERRY_EXHAUSTIVE=1 makes 3000 (FERRY_MOVES: so many).
"""

import collections
import contextlib
import os
import random
import signal
import time

import pytest
from conftest import side_by_side
from enumeration import EXHAUSTIVE
from ferry import Control
from kills import ended_soon, processes, wait_for
from line import Line

PAGE = 4096
PIECE = 1 << 20
GENERATION = 0xff000  # LAYOUT_GENERATION in src/vmm/layout.h
MOVES = int(os.environ.get("FERRY_MOVES", "3000" if EXHAUSTIVE else "16"))
PATIENCE_S = 15  # half of the silence after which a line is given up
ANEW = 12  # moves after which a guest whose memory is full by now gives way to another
SIZES = [(40, 4000), (40, 40000), (3136, 4000)]  # MiB, pages written a second; the last has memory above 4 GiB
TOO_LATE = "that --timeout gives: the "
GIVEN_UP = (TOO_LATE, "does not arrive in the time that --timeout gives", "writes its memory faster than it can be copied")


class Memory:
    """A guest's memory file, open: it stays when the guest's process ends."""

    def __init__(self, host):
        self.fd = -1
        (self.uuid,) = host.guests()
        with open(f"{host.root}/run/guests/{self.uuid}/process", encoding="ascii") as record:
            self.pid = int(record.read().split()[0])
        for fd in os.listdir(f"/proc/{self.pid}/fd"):
            path = f"/proc/{self.pid}/fd/{fd}"
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                if os.readlink(path).startswith("/memfd:guest-ram"):
                    self.fd = os.open(path, os.O_RDONLY)
        assert self.fd >= 0, "the guest's process has no memory"
        self.size = os.fstat(self.fd).st_size

    def data(self):
        """The pieces in which something is written: the others are holes, which read as zeros."""
        pieces, at = set(), 0
        while at < self.size:
            try:
                at = os.lseek(self.fd, at, os.SEEK_DATA)
            except OSError:  # ENXIO: nothing more
                break
            end = os.lseek(self.fd, at, os.SEEK_HOLE)
            pieces.update(range(at // PIECE, (end + PIECE - 1) // PIECE))
            at = end
        return pieces

    def close(self):
        os.close(self.fd)


def differences(one, other, restored=False):
    """Pages that are not the same in both; a restored guest has a generation ID of its own. None
    where that takes so long that the line is given up, and the guest goes on, meanwhile."""
    assert one.size == other.size
    pages, end = [], time.monotonic() + PATIENCE_S
    for piece in sorted(one.data() | other.data()):
        a, b = (bytearray(os.pread(memory.fd, PIECE, piece * PIECE)) for memory in (one, other))
        if restored and piece == GENERATION // PIECE:
            a[GENERATION:GENERATION + 16] = b[GENERATION:GENERATION + 16] = bytes(16)
        if time.monotonic() > end:
            return None
        if a != b:
            pages += [piece * PIECE // PAGE + i // PAGE for i in range(0, PIECE, PAGE) if a[i:i + PAGE] != b[i:i + PAGE]]
    return pages


class Mover:
    """A guest that goes to and fro between two hosts, over a line that holds COMMIT up."""

    def __init__(self, hosts, kernel, directory, chance):
        self.here, self.there = hosts
        self.kernel, self.file, self.chance = kernel, f"{directory}/Whole.checkpt", chance
        self.line = Line()
        self.count, self.moves, self.compared = collections.Counter(), 0, 0
        self.create()

    def create(self):
        mib, rate = SIZES[self.count["guests"] % len(SIZES)]
        self.count["guests"] += 1
        self.name, self.shared = "Whole", False
        line = f"tsc_khz=2000000 touch=4 dirty=1 rate=2000 memory={mib} scatter={rate}"
        self.here.xm("create", "-q", self.here.write_config(self.name, self.kernel, mib, 1, line))
        self.here.wait_guest().close()
        time.sleep(0.2)  # it has written here and there

    def end(self):
        self.here.xm("destroy", self.name)

    def same(self, one, other, how, restored=False):
        wrong = differences(one, other, restored)
        if wrong is None:
            self.count["too slow to compare"] += 1
            return
        assert not wrong, f"{len(wrong)} pages differ after {how}: {wrong[:8]}"
        self.compared += 1

    def migrate(self, *options):
        """One migration; whether the guest went."""
        self.line.arm(("→", "COMMIT", 1), "held", self.there.port)
        xm = self.here.start_xm("migrate", *options, "-p", str(self.line.port), self.name, "127.0.0.1")
        wait_for(lambda: self.line.reached.is_set() or xm.process.poll() is not None, f"COMMIT of {options}", 600)  # 3 GiB at 200 Mbit/s
        if self.line.reached.is_set():
            memories = Memory(self.here), Memory(self.there)
            try:
                self.same(*memories, f"xm migrate {' '.join(options)}")
            finally:
                self.line.release()
                for memory in memories:
                    memory.close()
            try:
                xm.finish()
            except RuntimeError:  # held up for too long
                wait_for(self.settled, "the end of a migration")
                if self.here.names():
                    return False
            self.here, self.there = self.there, self.here
            return True
        said = xm.process.communicate()[1]
        assert any(words in said for words in GIVEN_UP if "--on-stall=cancel" in options or words is TOO_LATE), (options, said)
        return False

    def cancel(self, *options):
        """A migration that is given up at some moment, unless it is over before."""
        self.line.arm(None, None, self.there.port)
        xm = self.here.start_xm("migrate", *options, "-r", "400", "-p", str(self.line.port), self.name, "127.0.0.1")
        ended_soon(xm.process, self.chance.uniform(0.02, 0.3))
        xm.process.send_signal(signal.SIGINT)
        said = xm.process.communicate()[1]
        assert xm.process.returncode == 0 or "Interrupted" in said, said
        wait_for(self.settled, "the end of a cancelled migration")
        if not self.here.names():
            self.here, self.there = self.there, self.here

    def settled(self):
        """One host has the guest, and no job with it; the other has nothing of it."""
        one, other = (self.here, self.there) if self.here.names() else (self.there, self.here)
        carriers = [processes(host, "ferry-carrier") for host in (one, other)]
        return one.names() == [self.name] and not other.guests() and carriers == [[], []] and self.is_free(one, other)

    def is_free(self, host, other):
        """Whether nobody has a job with the guest: a dry run needs that."""
        try:
            host.xm("migrate", "--dryrun", "-p", str(other.port), self.name, "127.0.0.1")
        except RuntimeError as failure:
            assert "is being" in str(failure), failure
            return False
        return True

    def save(self, save, restore):
        """To a file and back; what is restored stands still until it has been compared."""
        memory = Memory(self.here)
        self.here.xm("save", *save, self.name, self.file)
        if "--name" in restore:
            self.name = restore[restore.index("--name") + 1]
        self.here.xm("restore", "-p", *restore, self.file)
        os.unlink(self.file)
        if "--name" not in restore:
            (control_path,) = self.here.guests().values()
            control = Control(control_path)
            wait_for(lambda: not control.call({"do": "status"})["filling"], "its memory")
            control.close()
            restored = Memory(self.here)
            self.same(memory, restored, f"xm save {' '.join(save)}, restore {' '.join(restore)}", restored=True)
            restored.close()
        memory.close()
        self.here.xm("unpause", self.name)

    def save_and_go(self, save, restore):
        """The same, and gone again before its memory has come: the migration waits for it."""
        self.here.xm("save", *save, self.name, self.file)
        self.here.xm("restore", *restore, self.file)
        if "--name" in restore:
            self.name = restore[restore.index("--name") + 1]

    def options(self):
        """Those of one migration, drawn."""
        pick = self.chance.choice
        options = pick([["--live"], ["--live"], ["--live"], []])
        options = options + pick([[], [], ["-r", "800"], ["-r", "200"]]) + pick([[], ["--compress=yes"], ["--compress=no"]])
        if options[:1] == ["--live"]:
            options += pick([[], ["--timeout", "1"], ["--timeout", "2"], ["--timeout", "4"]])
            options += pick([[], ["--on-stall=stop"], ["--on-stall=cancel"]]) + pick([[], [], ["--max-downtime", "5"]])
        return options

    def before(self):
        """What the guest goes through before a migration, drawn."""
        pick = self.chance.choice
        save = pick([[], ["--live"], ["--compress"], ["--live", "--compress"]])
        clone = ["--name", f"Whole{self.moves}"]
        what = pick(["nothing"] * 4 + ["cancelled", "cancelled", "saved", "lazily restored", "cloned", "cloned and away"])
        if what == "cancelled":
            self.cancel(*pick([["--live"], [], ["--live", "--timeout", "1"]]))
        elif what == "saved":
            self.save(save, pick([[], ["--eager"]]))
        elif what == "lazily restored":
            self.save_and_go(save, [])
        elif what == "cloned":
            self.save(save, clone)
        elif what == "cloned and away":
            self.save_and_go(save, clone)
        return what

    def move(self):
        what = self.before()
        went = self.migrate(*self.options())
        self.count[what, "went" if went else "stayed"] += 1
        if os.path.exists(self.file):
            os.unlink(self.file)
        self.moves += 1
        if self.moves % max(1, min(ANEW, MOVES // 4)) == 0:
            self.end()
            self.create()


@pytest.mark.parametrize("connections", [0, 2])
def test_all_memory_arrives(native_kvm, kernel, tmp_path, connections, capsys):
    seed = int(os.environ.get("FERRY_SEED", "0")) or random.randrange(1 << 32)
    for hosts in side_by_side(clear_text=True, connections=connections):
        mover = Mover(hosts, kernel, tmp_path, random.Random(seed))
        try:
            while mover.moves < MOVES // 2:
                mover.move()
        except BaseException:
            print(f"FERRY_SEED={seed}, after {mover.moves} moves")
            raise
        finally:
            mover.line.close()
        assert mover.compared >= MOVES // 8
        with capsys.disabled():
            print(f"\n{mover.moves} moves, memory over {connections or 1} connections, {mover.compared} times compared: all alike "
                  f"(seed {seed}), {mover.count['too slow to compare']} were too large for that")
            for (what, went), times in sorted((k, v) for k, v in mover.count.items() if isinstance(k, tuple)):
                print(f"  {what:20} {went:7} {times:5}")

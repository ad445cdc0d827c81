"""What is measured, and what it is to reach: one row for each piece of work."""

from dataclasses import dataclass

LOOP = "rate=0"  # pages are rewritten as fast as the processor can
LINE_PAGES = 30500  # pages a second on 1 Gbit/s


@dataclass(frozen=True)
class Goal:
    """One figure of Ferry's beside a measure: QEMU's figure, a reference of this machine's, or 1 (the factor itself)."""

    figure: str
    factor: float
    of: str = "QEMU"
    at_least: bool = False

    def words(self):
        measure = f"{self.factor:.2g}" if self.of == "1" else f"{self.factor:.2g} × {self.of}"
        return f"{self.figure} {'at least' if self.at_least else 'at most'} {measure}"

    def met(self, value, measure):
        return value >= self.factor * measure if self.at_least else value <= self.factor * measure


@dataclass(frozen=True)
class Row:
    name: str
    memory: int  # MiB
    guest: str  # what it does (bench/guest/guest.c)
    way: str  # live, warm, save or restore
    mbit: int = 0  # of the line; 0: unlimited
    goals: tuple = ()  # each a tuple of Goals one of which is enough
    runs: int = 100  # at most so many


COPYING = ((Goal("CPU s/GiB", 0.5),),)
PACE = ((Goal("guest's pace %", 1, at_least=True),),)
IPERF, DD = "one iperf3 stream, GB/s", "dd oflag=direct, GB/s"

ROWS = [
    Row("idle guest of 256 MiB", 256, "touch=16", "live"),
    Row("idle guest of 1 GiB", 1024, "touch=16", "live"),
    Row("idle guest of 4 GiB", 4096, "touch=16", "live", goals=((Goal("total s", 0.06, "1"),), (Goal("downtime ms", 5, "1"),))),
    Row("warm, 64 MiB touched", 512, "touch=64", "warm"),
    Row("warm, 512 MiB touched", 1024, "touch=512", "warm", goals=COPYING),
    Row("warm, 1.5 GiB touched", 2048, "touch=1536", "warm",
        goals=((Goal("GB/s", 3, at_least=True),), (Goal("GB/s", 0.75, IPERF, at_least=True),), *COPYING)),
    Row("warm, 1.5 GiB touched, 10 Gbit/s", 2048, "touch=1536", "warm", 10000, goals=COPYING),
    Row("warm, 512 MiB touched, 1 Gbit/s", 1024, "touch=512", "warm", 1000, goals=COPYING),
    Row("live, 1.5 GiB touched", 2048, "touch=1536", "live", goals=(*COPYING, *PACE)),
    Row("live, 64 MiB dirtied in a loop", 512, f"touch=64 dirty=64 {LOOP}", "live",
        goals=((Goal("downtime ms", 1 / 3),), (Goal("total s", 0.5),))),
    Row("live, 512 MiB touched, 20000 pages/s", 1024, "touch=512 dirty=512 rate=20000", "live", goals=PACE),
    Row("live, 1.5 GiB, 10000 pages/s, 10 Gbit/s", 2048, "touch=1536 dirty=1536 rate=10000", "live", 10000,
        goals=((Goal("downtime ms", 1), Goal("downtime ms", 50, "1")), *PACE)),
    Row("live, 1.5 GiB dirtied in a loop, 10 Gbit/s", 2048, f"touch=1536 dirty=1536 {LOOP}", "live", 10000,
        goals=((Goal("downtime ms", 1), Goal("downtime ms", 50, "1")),), runs=1),
    Row("live, 256 MiB, 5000 pages/s, 1 Gbit/s", 512, "touch=256 dirty=64 rate=5000", "live", 1000, goals=PACE),
    Row("live, 256 MiB, as fast as the line, 1 Gbit/s", 512, f"touch=256 dirty=64 rate={LINE_PAGES}", "live", 1000,
        goals=((Goal("downtime ms", 1), Goal("downtime ms", 50, "1")),), runs=1),
    Row("live, 256 MiB, twice as fast as the line, 1 Gbit/s", 512, f"touch=256 dirty=64 rate={2 * LINE_PAGES}", "live", 1000,
        goals=((Goal("downtime ms", 1), Goal("downtime ms", 50, "1")),), runs=1),
    Row("live, 1.5 GiB dirtied in a loop, 1 Gbit/s", 2048, f"touch=1536 dirty=1536 {LOOP}", "live", 1000,
        goals=((Goal("downtime ms", 1), Goal("downtime ms", 50, "1")),), runs=1),
    Row("save, 64 MiB touched", 512, "touch=64", "save"),
    Row("save, 512 MiB touched", 1024, "touch=512", "save"),
    Row("save, 1.5 GiB touched", 2048, "touch=1536", "save",
        goals=((Goal("GB/s", 3, at_least=True), Goal("GB/s", 0.8, DD, at_least=True)),)),
    Row("restore, 64 MiB touched", 512, "touch=64", "restore", goals=((Goal("first beat ms", 50, "1"),),)),
    Row("restore, 512 MiB touched", 1024, "touch=512", "restore", goals=((Goal("first beat ms", 50, "1"),),)),
    Row("restore, 1.5 GiB touched", 2048, "touch=1536", "restore", goals=((Goal("first beat ms", 50, "1"),),)),
]

SWEEP_RATES = [0, 2000, 5000, 10000, 20000, 40000, 80000]  # pages a second over 128 MiB
SWEEP_PATIENCE_S = 40  # what has not arrived by then does not arrive
SWEEP_TOUCHED = [64, 256, 512, 1024, 1536]  # MiB

"""Free memory that is there.

Where this machine is itself a guest, its host may take back what is free (virtio-balloon's free page reporting, within two
seconds): whoever touches such a page first waits for the host, five times as long as for one that is there. Which of two programs
that hits is chance. So what both need is fetched before the clock starts; and where the kernel can be told to leave alone what has
not been free for long, all that is free is fetched before each row.
"""

import contextlib
import mmap
import time

# How long a page must have been free to be reported, ms; few kernels have it.
AGE, LONGEST_MS = "/sys/module/page_reporting/parameters/min_free_ms", 300000
QUIET_S = 0.1  # for what the kernel does afterwards
LEFT_MIB = 1024  # by who fetches all


def have_at_hand(mib):
    pages = mmap.mmap(-1, mib << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)
    pages.close()
    time.sleep(QUIET_S)


def have_all_at_hand():
    with open("/proc/meminfo", encoding="ascii") as file:
        available = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable:")) >> 10
    if available > LEFT_MIB:
        have_at_hand(available - LEFT_MIB)


@contextlib.contextmanager
def kept():
    """Meanwhile no memory that was just freed is taken back, where that can be had; what to do before each row."""
    try:
        with open(AGE, "r+", encoding="ascii") as file:
            before = file.read()
            file.write(str(LONGEST_MS))
    except OSError:
        yield lambda: None
        return
    try:
        yield have_all_at_hand
    finally:
        with open(AGE, "w", encoding="ascii") as file:
            file.write(before)

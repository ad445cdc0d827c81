"""Free memory that is there.

Where this machine is itself a guest, its host may take back what is free (virtio-balloon's free page reporting, within two
seconds, unless the kernel can be told to leave alone what has not been free for long): whoever touches such a page first waits for the host, five times as long as for one that is there. Which
of two programs that hits is chance; so what both need is fetched before the clock starts.
"""

import contextlib
import mmap
import time

# How long a page must have been free to be reported, ms; few kernels have it.
AGE, LONGEST_MS = "/sys/module/page_reporting/parameters/min_free_ms", 300000
QUIET_S = 0.1  # for what the kernel does afterwards


def have_at_hand(mib):
    pages = mmap.mmap(-1, mib << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)
    pages.close()
    time.sleep(QUIET_S)


@contextlib.contextmanager
def kept():
    """Meanwhile no memory that was just freed is taken back, where that can be had."""
    try:
        with open(AGE, "r+", encoding="ascii") as file:
            before = file.read()
            file.write(str(LONGEST_MS))
    except OSError:
        yield
        return
    try:
        yield
    finally:
        with open(AGE, "w", encoding="ascii") as file:
            file.write(before)

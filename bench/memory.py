"""Free memory that is there.

Where this machine is itself a guest, its host may take back what is free (virtio-balloon's free page reporting, within two
seconds): whoever touches such a page first waits for the host, five times as long as for one that is there. Which
of two programs that hits is chance; so what both need is fetched before the clock starts.
"""

import mmap
import time

QUIET_S = 0.1  # for what the kernel does afterwards


def have_at_hand(mib):
    pages = mmap.mmap(-1, mib << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)
    pages.close()
    time.sleep(QUIET_S)

"""Live migrations to and fro of one busy guest: 16, with FERRY_EXHAUSTIVE=1 fifty, as tests/native makes them at each check."""

import os

from conftest import check_unharmed, make_busy, shut_down_and_check_disk
from ferrylab.observe import Download

MOVES = int(os.environ.get("FERRY_TEST_MOVES", 50 if os.environ.get("FERRY_EXHAUSTIVE") == "1" else 16))  # an even number brings it home


def test_live_migrations_in_a_row(lab, host1, host2, running_guest):
    lab.secure(False)  # for the time that it takes; test_migrate moves guests through TLS
    guest = running_guest(host1, vcpus=2, memory=96)
    make_busy(guest, 2)
    download = Download(lab, guest.address, name="cgi-bin/steady").wait_flowing()
    line = guest.line()
    for n in range(MOVES):
        source, target = (host1, host2) if n % 2 == 0 else (host2, host1)
        # Rounds down to the default of 50 ms take emulated hosts some time.
        budget = "" if n % 5 == 0 else "--max-downtime 300"
        moved = source.run(f"xm migrate --live {budget} TestGuest {target.address}")
        print(f"{moved.seconds:5.1f} s: {moved.stdout}", end="", flush=True)
    downloads = download.stop()
    assert downloads >= 1
    print(f"{downloads} downloads")
    assert guest.line() is line, "the connection to the agent broke"
    check_unharmed(guest)
    assert guest.kernel_complaints() == []
    shut_down_and_check_disk(guest, host1)

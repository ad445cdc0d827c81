"""S1, S4 again and again: a guest at work (a build, a TCP session, disk writes) loses no byte, no tick and no second.

FERRY_EXHAUSTIVE=1 takes a hundred rounds, otherwise as many as there is time for.
"""

import hashlib
import itertools
import os
import random
import re
import threading
import time

from conftest import check_unharmed, shut_down_and_check_disk
from ferrylab.observe import wait_until

EXHAUSTIVE = os.environ.get("FERRY_EXHAUSTIVE") == "1"
SECONDS, LEAST = 60, 10  # of rounds, unless all are taken

UNITS = [range(unit * 1000, unit * 1000 + 1000) for unit in range(1, 4)]
BUILT = hashlib.sha256("".join(f"{n}\n" for unit in UNITS for n in unit).replace("7", "seven").encode()).hexdigest()
# Sources on the disk are made into objects, those into one result; whatever is wrong ends it, and is said.
BUILD = f"""set -eu -o pipefail
mkdir /var/build
cd /var/build
built=0
while :; do
	for unit in {' '.join(str(unit[0]) for unit in UNITS)}; do seq $unit $((unit + {len(UNITS[0]) - 1})) > $unit.source; done
	for source in *.source; do sed s/7/seven/g $source | gzip -9 > ${{source%.source}}.object; done
	for object in *.object; do gunzip < $object; done > whole
	sum=$(sha256sum < whole)
	[ "${{sum%% *}}" = {BUILT} ] || {{ echo "build $built gave $sum"; exit 1; }}
	rm -f *.source *.object whole
	built=$((built + 1))
	echo $built > /run/built.new
	mv /run/built.new /run/built
	usleep 500000
done
"""


class Conversation(threading.Thread):
    """Says random bytes to the guest again and again, over the agent's TCP connection, and compares what comes back."""

    def __init__(self, guest):
        super().__init__(daemon=True)
        self.echo, self.ended, self.wrong = guest.spawn("cat"), threading.Event(), None
        self.said = self.heard = 0
        self.start()

    def run(self):
        source, unheard = random.Random(7), bytearray()
        try:
            while not self.ended.is_set() or unheard:
                if not self.ended.wait(0.1) and len(unheard) < 1 << 17:
                    block = source.randbytes(4000)
                    self.echo.write(block)
                    unheard += block
                    self.said += len(block)
                with self.echo.changed:
                    if self.ended.is_set() and not self.echo.stdout:
                        self.echo.changed.wait(0.05)
                    answer = bytes(self.echo.stdout)
                    del self.echo.stdout[:]
                assert not self.echo.lost and self.echo.returncode is None, "the connection broke"
                assert unheard.startswith(answer), f"other bytes came back after the first {self.heard}"
                del unheard[: len(answer)]
                self.heard += len(answer)
        except Exception as failure:  # whoever stops it is told
            self.wrong = failure

    def goes_on(self, after):
        assert self.wrong is None, self.wrong
        return self.heard > after

    def stop(self):
        self.ended.set()
        self.join(300)
        assert self.wrong is None, self.wrong
        assert self.heard == self.said
        self.echo.close()


def look(guest):
    """(builds made, wall clock) as the guest has them; its pulses have seen no harm."""
    said = guest.run("bash -c 'echo $(</run/build.log) $(</run/built) $EPOCHREALTIME'; cat /run/pulse/clocks /run/pulse/memory").stdout
    first, *findings = said.splitlines()
    assert re.fullmatch(r"\d+ \d+\.\d+", first), said
    for name, value in map(str.split, findings):
        assert value == "0" or not name.endswith(("_backwards", "wrong_pages")), said
    return int(first.split()[0]), float(first.split()[1])


def clock_of(host):
    return float(host.run("echo $EPOCHREALTIME").stdout)


def test_a_guest_at_work_is_saved_and_restored_a_hundred_times(host1, running_guest):
    guest = running_guest(host1, memory=96)
    guest.pulse("clocks", 20000)
    guest.pulse("disk", "/var/journal/log", 100000)
    guest.pulse("memory", 8, 200)
    guest.run("echo 0 >/run/built; cat >/run/build; setsid bash /run/build </dev/null >/run/build.log 2>&1 &", stdin=BUILD)
    # The guest speaks unasked, too.
    guest.spawn("mkfifo /run/never; exec bash -c 'while ! read -t 0.2; do echo; done <>/run/never'").wait_output(re.compile(rb"\n\n"))
    conversation, line, errors = Conversation(guest), guest.line(), []
    boot = guest.run("cat /proc/sys/kernel/random/boot_id").stdout
    ways = itertools.cycle([("", ""), ("--live", ""), ("", "--eager"), ("--compress", ""), ("--live", "--eager")])
    began = time.monotonic()
    while len(errors) < 100 if EXHAUSTIVE else len(errors) < LEAST or time.monotonic() < began + SECONDS:
        save, restore = next(ways)
        host1.run(f"xm save {save} TestGuest TestGuest.checkpt")
        saved, heard = time.monotonic(), conversation.heard
        host1.run(f"xm restore {restore} TestGuest.checkpt && rm TestGuest.checkpt")
        restored = time.monotonic()
        wait_until(lambda: conversation.goes_on(heard), 300, "the TCP session to go on")
        before, (built, there), after = clock_of(host1), look(guest), clock_of(host1)
        errors.append(max(before - there, there - after, 0))
        assert errors[-1] < 0.5, f"the guest's clock is wrong by {errors} s"
        if len(errors) % 10 == 0:
            wait_until(lambda: look(guest)[0] > built, 300, "the build to go on")
            check_unharmed(guest)
        now = time.monotonic()
        print(f"{now - began:5.0f} s, round {len(errors)}: back after {restored - saved:.1f} s, at work after {now - restored:.1f} s more, "
              f"{built} builds", flush=True)
    conversation.stop()
    assert guest.line() is line, "the connection to the agent broke"
    assert guest.run("cat /proc/sys/kernel/random/boot_id").stdout == boot
    check_unharmed(guest)
    print(f"{conversation.heard} bytes said and heard again over one TCP connection, {look(guest)[0]} builds, "
          f"{guest.pulse_status('disk')['durable_records']} durable records, clock wrong by {max(errors):.3f} s at most")
    shut_down_and_check_disk(guest, host1)

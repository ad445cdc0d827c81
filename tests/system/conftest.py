"""System tests: the real programs on the lab's hosts, with real guests. One lab for the whole run."""

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "lab"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

from ferrylab import Lab, LabError  # noqa: E402
from ferrylab.observe import wait_until  # noqa: E402


@pytest.fixture(scope="session")
def the_lab():
    with Lab() as lab:
        for host in lab.ferry_hosts():
            lab.start_xend(host)
        lab.disturbed = False
        yield lab


@pytest.fixture
def lab(the_lab):
    """The lab, with every host up and its xend running; after the test, with nothing left of it."""
    if the_lab.disturbed:
        the_lab.repair()
    the_lab.secure(True)
    the_lab.disturbed = True
    yield the_lab
    the_lab.repair()
    the_lab.remove_guests()
    the_lab.on_hosts(nothing_left)
    the_lab.disturbed = False


@pytest.fixture
def host1(lab):
    return lab.host1


@pytest.fixture
def host2(lab):
    return lab.host2


def leftovers(host):
    """What of Ferry's guests is on a host: processes, interfaces, files, domains."""
    found = host.run("pgrep -a 'ferry-guest|ferry-carrier'; ls -d /run/ferry/guests/* 2>/dev/null; "
                     "ls /sys/class/net | grep -E '^(vif|tap)'; true").stdout.splitlines()
    domains = [line.split()[0] for line in host.run("xm list").stdout.splitlines()[1:]]
    return found + [d for d in domains if d != "Domain-0"]


def nothing_left(host):
    """Of Ferry's guests nothing is on a host, or soon will be: processes may take a moment to end."""
    try:
        wait_until(lambda: not leftovers(host), 300, "the end of processes")
    except LabError:
        pytest.fail(f"{host.name} still has: {leftovers(host)}")


@pytest.fixture
def running_guest(lab):
    """running_guest(host, **settings): a fresh guest, created on that host, its services up, or with wait=False soon to be."""

    def make(host, wait=True, **settings):
        guest = lab.new_guest(**settings)
        host.run(f"xm create {guest.name}")
        return guest.wait_up() if wait else guest

    return make


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """A failed test's report has what the hosts know."""
    report = (yield).get_result()
    the_lab = item.funcargs.get("lab")
    if not report.failed or the_lab is None:
        return
    for host in the_lab.ferry_hosts():
        try:
            text = host.run("timeout 30 xm list; tail -n 60 /var/log/xen/xend.log; tail -n 20 /var/log/xen/xend.out; "
                            "for d in $(timeout 30 xm list | awk 'NR > 2 {print $1}'); do echo \"the console of $d\"; "
                            "timeout 3 xm console $d </dev/null | tail -c 2000; done; "
                            "timeout 30 xm log TestGuest 2>/dev/null; "  # how it has ended, with its console's last lines
                            "dmesg | tail -n 15; ps -eo pid,stat,args | grep -v '\\['", check=False, timeout=120).stdout
        except LabError as error:
            text = f"{error}\n{host.post_mortem()}"
        report.sections.append((host.name, text))


def make_busy(guest, vcpus):
    """Work in the guest that notices harm: clocks on each processor, durable disk writes, memory being written."""
    guest.pulse("clocks", 5000 if vcpus == 1 else 20000)
    guest.pulse("disk", "/var/journal/log", 50000)
    guest.pulse("memory", 8, 200)


def check_unharmed(guest):
    """The busy guest goes on, and its clocks, disk and memory are as if nothing had happened."""
    before = guest.pulse_status("clocks")
    seen = wait_until(lambda: advanced(before, guest.pulse_status("clocks")), 120, f"{guest.name}: ticks on every CPU")
    for clock in ("monotonic", "boottime", "realtime"):
        assert seen[f"{clock}_backwards"] == 0, f"{clock} ran backwards: {seen}"
    # A host that is late with the timer's interrupt makes up for it; what is lost stays lost.
    wait_until(lambda: abs(guest.pulse_status("clocks")["timer_periods_lost"]) <= 1, 30, f"the ticks of a periodic timer: {seen}")
    memory = guest.pulse_status("memory")
    assert memory["wrong_pages"] == 0, memory
    durable = guest.pulse_status("disk")["durable_records"]
    verified = int(re.fullmatch(r"gapless_records (\d+)\n", guest.run("pulse verify /var/journal/log").stdout)[1])
    assert verified >= durable
    assert guest.kernel_complaints() == []


def seconds_wrong(guest, host):
    """By how much a guest's wall clock is wrong, whatever time it takes to look at it."""
    before, there, after = (float(machine.run("bash -c 'echo $EPOCHREALTIME'").stdout) for machine in (host, guest, host))
    return max(before - there, there - after, 0)


BOOT_ID = "cat /proc/sys/kernel/random/boot_id"


def boot_id(guest):
    """Tells boots of a guest apart; None while it does not answer."""
    try:
        return guest.wait_up(10).run(BOOT_ID, timeout=30).stdout
    except LabError:
        guest.disconnect()  # it may be a connection to the boot before, which nobody answers any more
        return None


def advanced(before, now):
    return now if now["fewest_ticks_of_a_cpu"] > before["fewest_ticks_of_a_cpu"] + 20 else None


def shut_down_and_check_disk(guest, host):
    """Ends a guest cleanly and has its file system checked."""
    guest.disconnect()
    host.run(f"xm shutdown -w {guest.name}")
    guest.disk.check()


def domain(host, name):
    """A guest's line of xm list as (id, memory, vcpus, state, seconds), or None."""
    for line in host.run("xm list").stdout.splitlines()[1:]:
        words = line.split()
        if words[0] == name:
            return int(words[1]), int(words[2]), int(words[3]), words[4], float(words[5])
    return None

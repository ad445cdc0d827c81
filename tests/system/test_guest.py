"""A stock Debian kernel as a guest, and the commands of its life."""

import re

import pytest

from conftest import BOOT_ID, boot_id, domain, nothing_left, seconds_wrong
from ferrylab.observe import Ping, wait_until


@pytest.mark.parametrize("vcpus,kernel", [(1, "/boot/vmlinuz"), (4, "/boot/vmlinuz"), (1, "/boot/vmlinux")])
def test_stock_kernel_boots(lab, host1, running_guest, vcpus, kernel):
    guest = running_guest(host1, vcpus=vcpus, kernel=kernel, extra="console=ttyS0")
    assert guest.run("nproc").stdout == f"{vcpus}\n"
    assert guest.kernel_complaints() == []
    assert guest.run("cat /proc/cmdline").stdout == "root=/dev/vda ro console=ttyS0\n"
    assert guest.run("cat /sys/devices/system/clocksource/clocksource0/current_clocksource").stdout == "kvm-clock\n"
    assert guest.run("head -c 64 /dev/hwrng | wc -c").stdout == "64\n"
    assert seconds_wrong(guest, host1) <= 2


def test_list_has_the_books_shape(lab, host1, running_guest):
    running_guest(host1, memory=96)
    lines = host1.run("xm list").stdout.splitlines()
    assert lines[0] == "Name                               ID Mem(MiB) VCPUs State   Time(s)"
    assert re.fullmatch(r"Domain-0 {28}0 +\d+ +\d+ r-----  +\d+\.\d", lines[1])
    assert re.fullmatch(r"TestGuest {25} *\d+ +96 +1 [r-][b-]----  +\d+\.\d", lines[2])


def test_shutdown_ends_the_guest_cleanly(host1, running_guest):
    guest = running_guest(host1)
    guest.run("echo written before shutdown > /root/note")
    guest.disconnect()
    host1.run("xm shutdown -w TestGuest")
    assert domain(host1, "TestGuest") is None
    host1.run("xm create TestGuest")
    assert guest.wait_up().run("cat /root/note").stdout == "written before shutdown\n"
    assert guest.run("dmesg | grep -c 'recovery complete'", check=False).stdout == "0\n"


def test_reboot_keeps_the_guest_and_its_id_changes(host1, running_guest):
    guest = running_guest(host1)
    boot = guest.run(BOOT_ID).stdout
    guest.disconnect()
    host1.run("xm reboot TestGuest")
    wait_until(lambda: boot_id(guest) not in (None, boot), 300, "the new boot")
    assert domain(host1, "TestGuest") is not None


def test_reboot_from_inside(host1, running_guest):
    guest = running_guest(host1)
    boot = guest.run(BOOT_ID).stdout
    guest.spawn("reboot")  # the end of the connection may come before its answer
    wait_until(lambda: boot_id(guest) not in (None, boot), 300, "the new boot")


def test_panic_is_a_crash(host1, running_guest):
    guest = running_guest(host1, on_crash="preserve")
    guest.spawn(["sh", "-c", "echo c > /proc/sysrq-trigger"])
    wait_until(lambda: domain(host1, "TestGuest")[3] == "----c-", 120, "the crash in xm list")
    guest.disconnect()
    host1.run("xm destroy TestGuest")


def test_pause_and_unpause(lab, host1, running_guest):
    guest = running_guest(host1)
    host1.run("xm pause TestGuest")
    assert domain(host1, "TestGuest")[3] == "--p---"
    assert lab.workstation.run(f"ping -c 2 -W 1 {guest.address}", check=False).status != 0
    host1.run("xm unpause TestGuest")
    Ping(lab.workstation, guest.address).wait_reply().stop()
    assert guest.run("echo here").stdout == "here\n"


def test_names(host1, running_guest):
    running_guest(host1)
    number = domain(host1, "TestGuest")[0]
    assert host1.run("xm domid TestGuest").stdout == f"{number}\n"
    assert host1.run(f"xm domname {number}").stdout == "TestGuest\n"
    host1.run("xm rename TestGuest Renamed")
    assert domain(host1, "Renamed")[0] == number
    host1.run("xm destroy Renamed")
    nothing_left(host1)


def test_console(host1, running_guest):
    running_guest(host1)
    console = host1.spawn(["xm", "console", "TestGuest"], pty=True)
    console.write("\r")
    console.wait_output(re.compile(rb"TestGuest:~# "))
    console.write("echo $((6 * 7))\r")
    console.wait_output(re.compile(rb"\n42\r"))
    console.write(b"\x1d")
    assert console.wait().status == 0


def test_created_paused_with_console(host1, lab):
    lab.new_guest(extra="console=ttyS0")
    host1.run("xm create -p TestGuest")
    assert domain(host1, "TestGuest")[3] == "--p---"
    console = host1.spawn(["xm", "console", "TestGuest"], pty=True)
    host1.run("xm unpause TestGuest")
    console.wait_output(re.compile(rb"Linux version 6\.1"))
    console.write(b"\x1d")
    console.wait()


def test_variables_override_the_file(host1, lab):
    lab.new_guest()
    host1.run("xm create TestGuest memory=160 name=Other vcpus=2")
    assert domain(host1, "Other")[1:3] == (160, 2)
    assert domain(host1, "TestGuest") is None


def test_dry_run_starts_nothing(host1, lab):
    lab.new_guest()
    host1.run("xm create --dryrun TestGuest")
    assert domain(host1, "TestGuest") is None


def test_guest_outlives_xend(lab, host1, running_guest):
    guest = running_guest(host1, extra="console=ttyS0")
    before = domain(host1, "TestGuest")
    ping, line = Ping(lab.workstation, guest.address).wait_reply(), guest.line()
    host1.run("kill -9 $(pgrep -x xend); while pgrep -x xend; do sleep 0.1; done")
    ping.wait_reply(100)
    lab.start_xend(host1)
    ping.wait_reply(100)
    ping.stop()
    assert guest.run("echo here").stdout == "here\n" and guest.line() is line
    assert domain(host1, "TestGuest")[:3] == before[:3]
    console = host1.spawn(["xm", "console", "TestGuest"], pty=True)
    console.wait_output(re.compile(rb"Linux version 6\.1"))  # the ring has survived
    console.write(b"\x1d")
    console.wait()
    guest.disconnect()
    host1.run("xm shutdown -w TestGuest")


def test_idle_guest_costs_little(host1, running_guest):
    """Under 8 MiB beside the guest's memory; its main thread sleeps."""
    guest = running_guest(host1)
    guest.disconnect()
    pid = host1.run("pgrep -x ferry-guest").stdout.strip()
    resident = 0
    guests_memory = False
    for line in host1.run(f"cat /proc/{pid}/smaps").stdout.splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            guests_memory = re.search(r"memfd:.*ram", line) is not None
        elif line.startswith("Rss:") and not guests_memory:
            resident += int(line.split()[1])
    assert resident < 8192, f"{resident} KiB beside the guest's memory"

    def wakeups_in_3_s():
        text = host1.run(f"for n in 1 2; do cat /proc/uptime /proc/{pid}/task/{pid}/status; sleep 3; done").stdout
        began, ended = (float(seconds) for seconds in re.findall(r"^(\d+\.\d+) \d+\.\d+$", text, re.M))
        first, last = (int(n) for n in re.findall(r"^voluntary_ctxt_switches:\s+(\d+)", text, re.M))
        return (last - first) * 3 / (ended - began)

    wait_until(lambda: wakeups_in_3_s() < 30, 120, "the guest's start to be over, and rest")

"""A clone of a Linux guest beside the guest itself: its own disk, address and random numbers."""

import re

from conftest import check_unharmed, domain, make_busy

GENERATION_ID = "dd if=/dev/mem bs=16 skip=$((0xff000 / 16)) count=1 2>/dev/null | od -An -tx1"
TOLD = "awk '/ACPI:Ged/ { print $2 }' /proc/interrupts"


def type_in(console, line, answer):
    console.write(line + "\r")
    console.wait_output(re.compile(answer))


def test_a_clone_beside_its_origin(lab, host1, running_guest):
    guest = running_guest(host1, memory=160)
    make_busy(guest, 1)
    first = guest.run(GENERATION_ID).stdout
    assert re.fullmatch(r"( [0-9a-f]{2}){16}\n", first) and guest.run(TOLD).stdout == "0\n"
    guest.disconnect()
    host1.run("xm save TestGuest TestGuest.checkpt")
    copy = lab.new_disk("Clone")
    lab.storage.run(f"dd if={guest.disk.file} of={copy.file} bs=1M conv=notrunc")
    refused = host1.run("xm restore --name Clone TestGuest.checkpt", check=False)
    assert refused.status == 1 and "Give the clone copies of the disks" in refused.stderr

    host1.run("xm restore TestGuest.checkpt")
    host1.run(["xm", "restore", "--name", "Clone", "TestGuest.checkpt", f"disk=['phy:{copy.device},xvda,w']"])
    host1.run("rm TestGuest.checkpt")
    assert domain(host1, "Clone")
    # The clone thinks that it has the other's address: it is as if its cable were out.
    check_unharmed(guest)
    second = guest.run(GENERATION_ID).stdout
    assert second != first and guest.run(TOLD).stdout == "1\n"

    mac = re.search(r"\(mac (00:16:3e:\S+?)\)", host1.run("xm list --long Clone").stdout)[1]
    assert mac != guest.mac
    console = host1.spawn(["xm", "console", "Clone"], pty=True)
    type_in(console, "", rb"TestGuest:~# ")
    type_in(console, "ping -c 1 -W 2 10.0.0.1 >/dev/null; echo ping $?", rb"\nping 1\r")
    type_in(console, f"ip link set eth0 down; ip link set eth0 address {mac}; ip addr flush dev eth0; "
                     "ip addr add 10.0.0.6/24 dev eth0; ip link set eth0 up; ping -c 1 -w 10 10.0.0.1 >/dev/null; echo pong $?",
            rb"\npong 0\r")
    console.write(b"\x1d")
    assert console.wait().status == 0
    clone = type(guest)(lab, "Clone", "10.0.0.6", copy)
    assert clone.run(GENERATION_ID).stdout not in (first, second) and clone.run(TOLD).stdout == "1\n"
    clone.disconnect()
    check_unharmed(guest)

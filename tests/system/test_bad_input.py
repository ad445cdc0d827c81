"""Mistakes: each gets one clear sentence on standard error, exit status 1, and leaves nothing behind."""

import os
import re

import pytest

from conftest import domain, leftovers
from ferrylab.observe import wait_until


def refused(host, command, *words, timeout=60):
    """The command fails with `Error: …`, one sentence that has all the words; nothing is left of it."""
    result = host.run(command, check=False, timeout=timeout)
    assert result.status == 1, result
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, result
    for word in words:
        assert word in lines[0], f"{word!r} is not in {lines[0]!r}"
    return lines[0]


@pytest.mark.parametrize("setting,words", [
    ("kernel=/etc/hosts", ["/etc/hosts"]),
    ("kernel=/boot/no-such-kernel", ["/boot/no-such-kernel"]),
    ("ramdisk=/boot/no-such-ramdisk", ["/boot/no-such-ramdisk"]),
    ("memory=100000", ["memory"]),
    ("memory=0", ["memory"]),
    ("vcpus=99", ["vcpus"]),
    ("vif=bridge=no-such-bridge", ["no-such-bridge"]),
    ("disk=phy:/dev/no-such-disk,xvda,w", ["/dev/no-such-disk"]),
    ("disk=file:/etc/no-such-image,xvda,w", ["/etc/no-such-image"]),
    ("disk=nonsense", ["nonsense"]),
])
def test_configuration_that_cannot_be(lab, host1, setting, words):
    lab.new_guest()
    refused(host1, f"xm create TestGuest {setting}", *words)
    assert leftovers(host1) == []


def test_mistakes_in_the_file_have_a_place(host1):
    host1.put('name = "Broken"\nmemory = 64\nvcpus = [ 1\n', "/etc/xen/Broken")
    line = refused(host1, "xm create Broken", "/etc/xen/Broken")
    assert re.search(r"\b[34]\b", line), line
    host1.put('name = "Broken"\nimport os\n', "/etc/xen/Broken")
    refused(host1, "xm create Broken", "2")
    refused(host1, "xm create NoSuchFile", "NoSuchFile")
    host1.run("rm /etc/xen/Broken")


def test_name_and_disk_in_use(lab, host1, running_guest):
    running_guest(host1)
    number = domain(host1, "TestGuest")[0]
    refused(host1, "xm create TestGuest", "TestGuest")
    refused(host1, "xm create TestGuest name=Second", lab.disks[0].device)
    assert domain(host1, "TestGuest")[0] == number
    assert domain(host1, "Second") is None


@pytest.mark.parametrize("command", ["pause", "unpause", "destroy", "shutdown", "reboot", "console", "domid",
                                     "migrate"])
def test_no_such_domain(host1, command):
    argument = " 10.0.0.2" if command == "migrate" else ""
    refused(host1, f"xm {command} NoSuchGuest{argument}", "NoSuchGuest")


def test_restore_of_what_is_no_checkpoint(host1):
    refused(host1, "xm restore /root/missing.checkpt", "/root/missing.checkpt")
    for content in (b"", b"not a checkpoint at all\n" * 100, os.urandom(100000)):
        host1.put(content, "/root/bad.checkpt")
        refused(host1, "xm restore /root/bad.checkpt", "/root/bad.checkpt")
        assert leftovers(host1) == []


def test_damaged_checkpoint(host1, running_guest):
    guest = running_guest(host1, memory=96)
    guest.disconnect()
    host1.run("xm save TestGuest good.checkpt", timeout=120)
    size = int(host1.run("stat -c %s good.checkpt").stdout)
    for cut in (size // 2, size - 1):
        host1.run(f"cp --sparse=always good.checkpt bad.checkpt; truncate -s {cut} bad.checkpt")
        refused(host1, "xm restore bad.checkpt", "bad.checkpt", timeout=120)
        assert leftovers(host1) == []
    # The guest may run before all its memory is there; it never runs on with memory that was not its own.
    host1.run("cp --sparse=always good.checkpt bad.checkpt; : > /var/log/xen/xend.log; "
              "dd if=/dev/urandom of=bad.checkpt bs=64 count=1 seek=300000 conv=notrunc 2>/dev/null")
    if host1.run("xm restore bad.checkpt", check=False, timeout=120).status == 0:
        wait_until(lambda: leftovers(host1) == [], 60, "the end of a guest with damaged memory")
        assert "bad.checkpt: The checkpoint is damaged" in host1.run("cat /var/log/xen/xend.log").stdout
    assert leftovers(host1) == []
    host1.run("xm restore good.checkpt", timeout=120)
    assert guest.run("echo here").stdout == "here\n"


def test_restore_beside_the_running_original(host1, running_guest):
    guest = running_guest(host1, memory=96)
    guest.disconnect()
    host1.run("xm save -c TestGuest copy.checkpt", timeout=120)
    number = domain(host1, "TestGuest")[0]
    refused(host1, "xm restore copy.checkpt", "TestGuest")
    assert domain(host1, "TestGuest")[0] == number
    assert guest.run("echo here").stdout == "here\n"


def test_no_room_for_the_checkpoint(host1, running_guest):
    """S5: the guest goes on, nothing of the file stays."""
    guest = running_guest(host1)
    host1.run("mkdir -p /mnt/small && mount -t tmpfs -o size=4m tmpfs /mnt/small")
    try:
        refused(host1, "xm save TestGuest /mnt/small/x.checkpt", "not enough space", timeout=120)
        assert host1.run("ls -A /mnt/small").stdout == ""
        assert guest.run("echo here").stdout == "here\n"
    finally:
        host1.run("umount /mnt/small")


def test_no_kvm(lab, host1):
    lab.new_guest()
    host1.run("mv /dev/kvm /dev/kvm.away")
    try:
        refused(host1, "xm create TestGuest", "/dev/kvm")
        assert leftovers(host1) == []
    finally:
        host1.run("mv /dev/kvm.away /dev/kvm")


def test_xend_not_running(lab, host1):
    host1.run("kill $(pgrep -x xend)")
    host1.run("while pgrep -x xend; do sleep 0.1; done", timeout=20)
    refused(host1, "xm list", "xend")
    lab.start_xend(host1)


def test_garbage_on_the_api_socket_and_the_relocation_port(lab, host1):
    socket = "/var/lib/xend/xend-socket"
    for bytes_sent in (b"", b"GET", b"GET / HTTP/9.9\r\n\r\n",
                       b"POST /domains HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n",
                       b"POST /domains HTTP/1.1\r\nContent-Length: 3\r\n\r\n{[}", os.urandom(5000)):
        host1.put(bytes_sent, "/tmp/garbage")
        host1.run(f"timeout 3 socat -t1 - UNIX-CONNECT:{socket} < /tmp/garbage > /dev/null", check=False)
        lab.workstation.put(bytes_sent, "/tmp/garbage")
        lab.workstation.run("timeout 3 socat -t1 - TCP:10.0.0.1:8002 < /tmp/garbage > /dev/null", check=False)
    host1.run("xm list", timeout=10)
    assert leftovers(host1) == []


def test_unknown_options_are_named(host1):
    result = host1.run("xm list --no-such-option", check=False)
    assert result.status == 1 and "--no-such-option" in result.stderr
    result = host1.run("xm nonsense", check=False)
    assert result.status == 1 and "nonsense" in result.stderr

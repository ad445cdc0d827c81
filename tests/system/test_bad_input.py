"""Mistakes: each gets one clear sentence on standard error, exit status 1, and leaves nothing behind."""

import os
import re
import struct

import checkpoint_file
import pytest

from checkpoint_file import number_after
from checkpoints import changed, get_ends, put_ends
from conftest import domain, leftovers, nothing_left
from ferrylab.observe import wait_until


def refused(host, command, *words):
    """The command fails with `Error: …`, one sentence that has all the words; nothing is left of it."""
    result = host.run(command, check=False)
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
    ("vcpus=999", ["vcpus"]),
    ("vif=bridge=no-such-bridge", ["no-such-bridge"]),
    ("disk=phy:/dev/no-such-disk,xvda,w", ["/dev/no-such-disk"]),
    ("disk=file:/etc/no-such-image,xvda,w", ["/etc/no-such-image"]),
    ("disk=nonsense", ["nonsense"]),
])
def test_configuration_that_cannot_be(lab, host1, setting, words):
    lab.new_guest()
    refused(host1, f"xm create TestGuest {setting}", *words)
    nothing_left(host1)


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
        nothing_left(host1)


def test_damaged_checkpoint(host1, running_guest):
    guest = running_guest(host1, memory=96)
    guest.disconnect()
    host1.run("xm save TestGuest good.checkpt")
    size = int(host1.run("stat -c %s good.checkpt").stdout)
    for cut in (size // 2, size - 1):
        host1.run(f"cp --sparse=always good.checkpt bad.checkpt; truncate -s {cut} bad.checkpt")
        refused(host1, "xm restore bad.checkpt", "bad.checkpt")
        nothing_left(host1)
    # The guest may run before all its memory is there; it never runs on with memory that was not its own.
    host1.run("cp --sparse=always good.checkpt bad.checkpt; : > /var/log/xen/xend.log; "
              "dd if=/dev/urandom of=bad.checkpt bs=64 count=1 seek=300000 conv=notrunc 2>/dev/null")
    if host1.run("xm restore bad.checkpt", check=False).status == 0:
        wait_until(lambda: leftovers(host1) == [], 60, "the end of a guest with damaged memory")
        assert "bad.checkpt: The checkpoint is damaged" in host1.run("cat /var/log/xen/xend.log").stdout
    nothing_left(host1)
    host1.run("xm restore --accept=disks good.checkpt")  # what ran for a moment may have written
    assert guest.run("echo here").stdout == "here\n"


def of_the_guest(**members):
    def apply(description):
        description["domain"]["config"].update(members)
        description["domain"].update({key: value for key, value in members.items() if key in description["domain"]})
        return description
    return {"description": apply}


def set_number(size, number, *place):
    def apply(records):
        struct.pack_into(f"<{size}", records, number_after(records, *place), number)
        return records
    return {"state": apply}


def set_in_header(size, at, number):
    def apply(header):
        struct.pack_into(f"<{size}", header, at, number)
        return header
    return {"header": apply}


def test_each_reason_for_which_a_checkpoint_is_refused(lab, host1, running_guest, tmp_path):
    """S6, S7, cured: what was one message in the book, each by its name, with the way out; the checkpoint itself is good."""
    guest = running_guest(host1, memory=96)
    guest.disconnect()
    host1.run("xm save TestGuest /root/good.checkpt")
    get_ends(host1, "/root/good.checkpt", tmp_path / "ends")
    refused(host1, "xm restore /root/none", "Unable to read file /root/none: No such file or directory")
    refused(host1, "xm restore /root", "it is not a file")
    refused(host1, "xm restore /sys/bus/pci/rescan", "Unable to read file /sys/bus/pci/rescan: Permission denied")  # for writing only
    host1.run("mkfifo /root/pipe")
    refused(host1, "xm restore /root/pipe", "it is not a file")
    host1.run("truncate -s 4 /root/short")
    refused(host1, "xm restore /root/short", "is not a checkpoint: it has only 4 bytes")
    for how, words in (
        (set_in_header("I", 8, 2), ["was written by a newer Ferry (format 2; this one reads 1)"]),
        (set_in_header("I", 12, 0x10), ["was written by a newer Ferry: it uses features (0x10)"]),
        (of_the_guest(disk=["phy:/dev/no-such-disk,xvda,w"]), ["Unable to open disk /dev/no-such-disk", "No such file"]),
        (of_the_guest(vif=["mac=00:16:3e:00:00:01, bridge=nobridge0"]), ["Bridge nobridge0", "does not exist"]),
        (set_number("I", 0xffffffff, ("function", 7), ("index", 0), "ebx"),
         ["This host's processor lacks features that the guest uses: ", "Run the guest on a host that has them"]),
        (set_number("Q", (1 << 64) - 1, "sregs", "cr4"), ["KVM refuses a processor's "]),
    ):
        refused(host1, f"xm restore {changed(host1, '/root/good.checkpt', tmp_path / 'ends', **how)}", *words)
        nothing_left(host1)
    config = {"name": "Large", "uuid": "cc0029f5-10a1-e6d0-3c92-19b0ea021f21", "memory": 4096, "vcpus": 1, "kernel": "/none"}
    checkpoint_file.write(tmp_path / "large", memory_mib=4096, domain={"name": "Large", "config": config})
    put_ends(host1, tmp_path / "large", "/root/large")
    refused(host1, "xm restore --accept=kernel /root/large", "Domain 'Large' needs 4104 MiB", "MiB left for guests; end another guest")
    nothing_left(host1)
    host1.run("xm restore good.checkpt")
    number = domain(host1, "TestGuest")[0]
    refused(host1, "xm restore good.checkpt", f"Domain 'TestGuest' exists already with ID {number}; destroy or rename that one first")
    host1.run("xm rename TestGuest Other")
    refused(host1, "xm restore good.checkpt", f"is in use by domain 'Other' with ID {number}: they are the same guest")
    assert guest.run("echo here").stdout == "here\n"
    assert guest.kernel_complaints() == []


def test_no_room_for_the_checkpoint(host1, running_guest):
    """S5: the guest goes on, nothing of the file stays."""
    guest = running_guest(host1)
    host1.run("mkdir -p /mnt/small && mount -t tmpfs -o size=4m tmpfs /mnt/small")
    try:
        refused(host1, "xm save TestGuest /mnt/small/x.checkpt", "not enough space")
        assert host1.run("ls -A /mnt/small").stdout == ""
        assert guest.run("echo here").stdout == "here\n"
    finally:
        host1.run("umount /mnt/small")


def test_no_kvm(lab, host1):
    lab.new_guest()
    host1.run("mv /dev/kvm /dev/kvm.away")
    try:
        refused(host1, "xm create TestGuest", "/dev/kvm")
        nothing_left(host1)
    finally:
        host1.run("mv /dev/kvm.away /dev/kvm")


def test_xend_not_running(lab, host1):
    host1.run("kill $(pgrep -x xend)")
    host1.run("while pgrep -x xend; do sleep 0.1; done")
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
    host1.run("xm list")
    nothing_left(host1)


def test_unknown_options_are_named(host1):
    result = host1.run("xm list --no-such-option", check=False)
    assert result.status == 1 and "--no-such-option" in result.stderr
    result = host1.run("xm nonsense", check=False)
    assert result.status == 1 and "nonsense" in result.stderr

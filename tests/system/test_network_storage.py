"""Storage that the hosts share: checkpoints and disks on NFS, and the guests of the book's listings 13.21 and 13.22."""

import contextlib
import signal

from conftest import check_unharmed, domain, make_busy, nothing_left, shut_down_and_check_disk
from ferrylab.network_storage import AoeVolume, NfsDisk, NfsRoot, NfsShare
from ferrylab.observe import Download, Ping, wait_until
from test_bad_input import refused


@contextlib.contextmanager
def slow_line(host):
    """What a host sends, it sends at 1 MB/s."""
    host.run("tc qdisc replace dev eth0 root tbf rate 8mbit burst 32kb limit 1mb")
    try:
        yield
    finally:
        host.run("tc qdisc del dev eth0 root")


def test_checkpoints_on_nfs(lab, host1, host2, running_guest):
    """Saved here and restored there; a full or absent server costs the checkpoint, never the guest."""
    share, small = NfsShare(lab, "checkpoints"), NfsShare(lab, "small", mebibytes=12)
    guest = running_guest(host1, memory=96)
    make_busy(guest, 1)
    guest.disconnect()

    # What the server has, and what it turns out to have.
    refused(host1, f"xm save TestGuest {small.path}/c", "not enough space")
    refused(host1, f"xm save --compress TestGuest {small.path}/c", "No space left on device")
    assert host1.run(f"ls -A {small.path}").stdout == "lost+found\n"
    check_unharmed(guest)

    # A server that does not answer: ^C, and the guest runs on at once; nothing waits for the server.
    with slow_line(host1):  # the checkpoint would take a minute
        saving = host1.spawn(f"xm save TestGuest {share.path}/c")
        wait_until(lambda: lab.storage.run(f"ls {share.directory}").stdout, 120, "the temporary file")
        lab.nfs_down()
    saving.kill(signal.SIGINT)
    stopped = saving.wait()
    assert stopped.status == 1 and "cancelled" in stopped.stderr, stopped
    wait_until(lambda: "p" not in domain(host1, "TestGuest")[3], 120, "the guest to run on")
    check_unharmed(guest)
    lab.nfs_up()
    wait_until(lambda: not lab.storage.run(f"ls {share.directory}").stdout, 300, "the end of the temporary file")

    # From host to host.
    guest.disconnect()
    host1.run(f"xm save TestGuest {share.path}/c")
    assert lab.storage.run(f"ls {share.directory}").stdout == "c\n"
    nothing_left(host1)
    host2.run(f"xm checkpoint {share.path}/c && xm restore {share.path}/c")
    check_unharmed(guest)
    shut_down_and_check_disk(guest, host2)


def test_a_disk_on_nfs_is_one_guests(lab, host1, host2, running_guest):
    """M12: the server knows whose disk it is, also when nobody can ask the host that runs the guest."""
    share = NfsShare(lab, "disks")
    guest = running_guest(host1, memory=96, disk=lab.new_disk("TestGuest", "10.0.0.5", NfsDisk, share=share))
    guest.pulse("disk", "/var/journal/log", 20000)
    guest.disconnect()
    host1.run(f"xm save -c TestGuest {share.path}/c")
    for here, there in ((host1, host2), (host2, host1)):
        here.run("xend stop")
        refused(there, "xm create TestGuest", f"Disk {guest.disk.device} (xvda)", "is in use")
        refused(there, f"xm restore {share.path}/c", f"Disk {guest.disk.device} (xvda)", "is in use")
        nothing_left(there)
        lab.start_xend(here)
        if here is host1:
            host1.run(f"xm migrate --live TestGuest {host2.address}")
    durable = guest.pulse_status("disk")["durable_records"]
    assert int(guest.run("pulse verify /var/journal/log").stdout.split()[1]) >= durable
    shut_down_and_check_disk(guest, host2)


def test_the_book_s_guest_on_lvm_over_ata_over_ethernet(lab, host1, host2, running_guest):
    """Listing 13.21, with a kernel besides its bootloader; M6 and M7 with Apache."""
    lab.secure(False)
    guest = running_guest(host1, memory=96, disk=lab.new_disk("TestGuest", "10.0.0.5", AoeVolume), nographic=1,
                          uuid="cc0029f5-10a1-e6d0-3c92-19b0ea021f21", bootloader="/usr/bin/pygrub")
    guest.run("apache2 -d /etc/apache2 -f apache2.conf")
    download = Download(lab, guest.address, port=8080).wait_flowing()
    ping = Ping(lab.workstation, guest.address).wait_reply()
    host1.run(f"xm migrate --live {domain(host1, 'TestGuest')[0]} {host2.address}")
    print(ping.wait_reply(100).stop())
    assert download.stop() >= 1
    assert "Server: Apache" in lab.workstation.run(f"wget -S -q -O /dev/null http://{guest.address}:8080/index.html").stderr
    # The volume's identity is LVM's own, the same on both hosts: nobody has to compare contents.
    result = host1.run("xm create TestGuest", check=False)
    assert result.status == 1 and "runs on 10.0.0.2" in result.stderr, result
    shut_down_and_check_disk(guest, host2)


def test_the_book_s_guest_with_its_root_on_nfs(lab, host1, host2, running_guest):
    """Listing 13.22."""
    guest = running_guest(host1, memory=128, disk=lab.new_disk("TestGuest", kind=NfsRoot), ramdisk="/boot/ramdisk-nfs",
                          root="/dev/nfs", nfs_server="10.0.0.40", nfs_root="/XenGuestRoots/TestGuest",
                          ip="10.0.0.5", netmask="255.255.255.0", hostname="TestGuest")
    assert "10.0.0.40:/XenGuestRoots/TestGuest / nfs4" in guest.run("cat /proc/mounts").stdout
    guest.pulse("disk", "/var/journal/log", 20000)
    line = guest.line()
    host1.run(f"xm migrate --live TestGuest {host2.address}")
    durable = guest.pulse_status("disk")["durable_records"]
    assert int(guest.run("pulse verify /var/journal/log").stdout.split()[1]) >= durable > 0
    assert guest.line() is line, "the connection to the agent broke"
    shut_down_and_check_disk(guest, host2)

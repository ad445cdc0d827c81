"""The host's storage is full: a guest that writes stands still, goes on when there is room, and has noticed nothing."""

from conftest import domain
from ferrylab.observe import wait_until


def waits(host):
    return "Domain 'TestGuest' waits: the storage of its disk xvdb is full" in host.run("xm list").stderr


def test_a_guest_that_writes_waits_for_room(lab, host1):
    host1.run("mkdir -p /small && mount -t tmpfs -o size=16m none /small && truncate -s 64M /small/disk")
    host1.run("dd if=/dev/zero of=/small/filler bs=1M count=12 2>/dev/null")
    guest = lab.new_guest()
    host1.put(guest.config.replace("xvda,w' ]", "xvda,w', 'file:/small/disk,xvdb,w' ]"), "/etc/xen/TestGuest")
    host1.run("xm create TestGuest")
    guest.wait_up().run("dd if=/dev/urandom of=/root/random bs=1M count=10 2>/dev/null; sync")
    guest.run("setsid sh -c 'dd if=/root/random of=/dev/vdb bs=64k oflag=direct; echo $? > /root/status; sync' "
              "</dev/null >/dev/null 2>&1 &")
    wait_until(lambda: waits(host1), 300, "the guest's waiting in xm list")
    assert domain(host1, "TestGuest")[3][2] == "p" or waits(host1)
    guest.disconnect()
    # Meanwhile it may be paused and unpaused, saved, and come out of the file again.
    host1.run("xm pause TestGuest && xm unpause TestGuest")
    wait_until(lambda: waits(host1), 300, "its waiting after the pause")
    host1.run("xm save TestGuest /root/full.checkpt && xm restore /root/full.checkpt")
    wait_until(lambda: waits(host1), 300, "its waiting after the restore")
    host1.run("rm /small/filler")
    wait_until(lambda: not waits(host1), 300, "the guest's going on")
    wait_until(lambda: guest.run("cat /root/status", check=False).stdout == "0\n", 300, "the end of what it writes")
    assert guest.run("cmp -n 10485760 /root/random /dev/vdb && echo same").stdout == "same\n"
    assert guest.run("dmesg | grep -ci 'i/o error'", check=False).stdout == "0\n"
    guest.disconnect()
    host1.run("xm destroy TestGuest; rm -f /root/full.checkpt")
    wait_until(lambda: host1.run("umount /small", check=False).status == 0, 60, "the disk's end")

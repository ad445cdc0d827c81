"""Save and restore: S1, S2, S4, S8 and S10 of the chapter, and what must survive."""

import time

import pytest

from conftest import check_unharmed, domain, make_busy, nothing_left, seconds_wrong, shut_down_and_check_disk


@pytest.mark.parametrize("vcpus", [1, 4])
def test_busy_guest_goes_on_where_it_stopped(host1, running_guest, vcpus):
    """S1, S4: by name and by ID, with disk writes, timers and memory under way."""
    guest = running_guest(host1, vcpus=vcpus, memory=160)
    make_busy(guest, vcpus)
    number = domain(host1, "TestGuest")[0]
    boot = guest.run("cat /proc/sys/kernel/random/boot_id").stdout
    for which in ("TestGuest", None):
        number = domain(host1, "TestGuest")[0]
        guest.disconnect()
        saved = host1.run(f"xm save {which or number} TestGuest.checkpt")
        assert (saved.stdout, saved.stderr) == ("", "")
        assert domain(host1, "TestGuest") is None
        nothing_left(host1)
        host1.run("xm restore TestGuest.checkpt")
        again = domain(host1, "TestGuest")
        assert again[0] != number
        assert again[4] < 60
        assert guest.run("cat /proc/sys/kernel/random/boot_id").stdout == boot
        check_unharmed(guest)
        host1.run("rm TestGuest.checkpt")
    shut_down_and_check_disk(guest, host1)


def test_clock_is_right_after_a_long_pause(host1, running_guest):
    """The guest's wall clock does not lose the time that it spent in a file."""
    guest = running_guest(host1)
    guest.disconnect()
    host1.run("xm save TestGuest TestGuest.checkpt")
    time.sleep(12)  # the guest's kernel would complain of more than 10 s of which it was not told
    host1.run("xm restore TestGuest.checkpt")
    guest.wait_up()
    assert guest.kernel_complaints() == []
    assert seconds_wrong(guest, host1) <= 2


def test_checkpoint_is_smaller_than_memory(host1, running_guest):
    """S3, cured: what was never touched takes no space, and a freshly booted guest compresses to less than half of the rest."""
    guest = running_guest(host1, memory=256)
    guest.disconnect()
    host1.run("xm save -c TestGuest plain.checkpt")
    host1.run("xm save --compress TestGuest TestGuest.checkpt")
    plain, compressed = (int(blocks) * 512 for blocks in host1.run("stat -c %b plain.checkpt TestGuest.checkpt").stdout.split())
    print(f"256 MiB of memory: {plain >> 20} MiB on disk, compressed {compressed >> 20}")
    assert plain < 128 << 20 and compressed < plain / 2, (plain, compressed)
    host1.run("rm plain.checkpt; xm restore TestGuest.checkpt")
    guest.wait_up()
    assert guest.kernel_complaints() == []


def test_several_checkpoints_and_roll_back(lab, host1, running_guest):
    """S2, S10: any number of checkpoints; an old one is a way back, faster than booting."""
    guest = running_guest(host1)
    guest.run("mount -o remount,ro /; true", check=False)  # memory goes back, the disk does not
    for n in (1, 2):
        guest.run(f"echo {n} > /run/version")
        guest.disconnect()
        host1.run(f"xm save TestGuest {n}.checkpt")
        host1.run(f"xm restore {n}.checkpt")
        assert guest.wait_up().run("cat /run/version").stdout == f"{n}\n"
    guest.run("echo broken > /run/version")
    guest.disconnect()
    host1.run("xm destroy TestGuest")
    host1.run("xm restore --accept=disks 1.checkpt")  # whether the disk took the last words before it was mounted read-only or not
    assert guest.run("cat /run/version").stdout == "1\n"


def test_domain_0_cannot_be_saved(host1):
    """S8"""
    for name in ("Domain-0", "0"):
        result = host1.run(f"xm save {name} x.checkpt", check=False)
        assert result.status == 1
        assert result.stderr.startswith("Error: ") and "Domain-0" in result.stderr
    assert host1.run("ls x.checkpt", check=False).status != 0


def test_existing_file_is_not_overwritten(host1, running_guest):
    """S9, cured."""
    running_guest(host1)
    host1.run("echo precious > old.checkpt")
    result = host1.run("xm save TestGuest old.checkpt", check=False)
    assert result.status == 1 and "old.checkpt" in result.stderr
    assert host1.run("cat old.checkpt").stdout == "precious\n"
    assert domain(host1, "TestGuest") is not None


def test_memory_follows_a_guest_whose_file_is_gone(host1, running_guest):
    """The guest runs before its memory is there (the host's kernel has /dev/userfaultfd), and needs the file's name no more."""
    guest = running_guest(host1, memory=160)
    make_busy(guest, 1)
    guest.disconnect()
    host1.run("xm save TestGuest TestGuest.checkpt")
    host1.run("xm restore TestGuest.checkpt && rm TestGuest.checkpt")
    check_unharmed(guest)
    host1.run("for i in $(seq 900); do xm log | grep -q 'has all of its memory' && exit 0; sleep 0.1; done; exit 1")
    check_unharmed(guest)
    guest.disconnect()
    host1.run("xm save TestGuest TestGuest.checkpt")
    host1.run("xm restore --eager TestGuest.checkpt")
    check_unharmed(guest)

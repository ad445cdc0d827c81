"""What a guest's process has, while the guest runs: nothing of the host's, nothing of another guest's."""

import os
import re

SYSTEM_CALL_FILTER = "2"  # proc(5), Seccomp: SECCOMP_MODE_FILTER


def start(host, kernel, name, disk):
    with open(disk, "wb") as file:
        file.truncate(1 << 20)
    config = host.write_config(name, kernel, 64, 1, "tsc_khz=2000000 touch=8 dirty=1 rate=5000")
    with open(config, "a", encoding="utf-8") as file:
        file.write(f"disk = ['file:{disk},xvda,w']\n")
    host.xm("create", "-q", config)


def processes(host):
    """The guests' processes by name."""
    found = {}
    for name, control in host.guests().items():
        with open(os.path.join(os.path.dirname(control), "process"), encoding="ascii") as record:
            found[name] = record.read().split()[0]
    return found


def status(pid):
    with open(f"/proc/{pid}/status", encoding="utf-8") as file:
        return dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)


def memory_is_dumped(pid):
    """Of each large mapping that can be written: whether a core file would have it (proc(5), smaps, VmFlags)."""
    flags, size = [], 0
    with open(f"/proc/{pid}/smaps", encoding="utf-8") as file:
        for line in file:
            if line.startswith("Size:"):
                size = int(line.split()[1])
            elif line.startswith("VmFlags:") and size >= 64 << 10:
                flags.append(" dd" not in line)
    return flags


def test_a_guests_process_has_nothing_but_its_own(hosts, kernel, tmp_path):
    host = hosts[0]
    for name in ("One", "Two"):
        start(host, kernel, name, tmp_path / f"{name}.disk")
    found = processes(host)
    assert len(found) == 2
    users = set()
    for pid in found.values():
        about = status(pid)
        assert about["Seccomp"].strip() == SYSTEM_CALL_FILTER and about["NoNewPrivs"].strip() == "1"
        assert int(about["CapEff"], 16) == int(about["CapPrm"], 16) == int(about["CapInh"], 16) == 0
        users.add(about["Uid"])
        assert os.listdir(f"/proc/{pid}/root") == []
        assert os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net")
        assert memory_is_dumped(pid) == [False]
        held = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        disks = [path for path in held if path.startswith(str(tmp_path)) and path.endswith(".disk")]
        assert len(disks) == 1
        named = [path for path in held if path.startswith("/") and path not in disks]
        assert all(re.match(r"/dev/(null|kvm|net/tun|userfaultfd)$|/memfd:", path) or re.search(r"/guests/[0-9a-f-]{36}/log$", path)
                   for path in named), named
    assert len(users) == 2

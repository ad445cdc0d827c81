"""Each reason for which a checkpoint cannot be restored, or a guest not saved: one sentence, exit status 1, nothing left."""

import os
import pathlib
import shutil
import signal
import struct

import checkpoint_file
import pytest
from checkpoint_file import RAM_AT, number_after
from conftest import TOP
from kills import processes, read, wait_for
from test_native import LINE, names, start

MIB = 1 << 20


@pytest.fixture
def saved(hosts, heartbeat, kernel, tmp_path):
    path = f"{tmp_path}/Native.checkpt"
    start(hosts[0], heartbeat, kernel, memory=64, line="tsc_khz=2000000 touch=4", vcpus=2)
    hosts[0].xm("save", "Native", path)
    return path


def refusal(host, *words):
    """What xm says of a command that fails."""
    before = names(host)
    with pytest.raises(RuntimeError) as failure:
        host.xm(*words)
    assert names(host) == before
    said = str(failure.value).split(": ", 1)[1]
    assert said.startswith("Error: ") and said.count("\n") == 0
    return said[len("Error: "):]


def without_guests(host):
    assert names(host) == ["Domain-0"] and host.guests() == {} and os.listdir(f"{host.root}/run/carriers") == []


def change(path, **members):
    """Of the guest's configuration as the checkpoint has it."""
    def apply(description):
        domain = description["domain"]
        for key, value in members.items():
            domain["config"][key] = value
            if key in domain:
                domain[key] = value
        return description
    checkpoint_file.alter(path, description=apply)


def set_number(size, number, *place):
    def apply(records):
        struct.pack_into(f"<{size}", records, number_after(records, *place), number)
        return records
    return apply


def test_a_file_that_is_none(hosts, tmp_path):
    host = hosts[0]
    assert refusal(host, "restore", f"{tmp_path}/none") == f"Unable to read file {tmp_path}/none: No such file or directory."
    assert "it is not a file" in refusal(host, "restore", str(tmp_path))
    with open(f"{tmp_path}/text", "w", encoding="ascii") as file:
        file.write("text " * 2000)
    assert "is not a checkpoint" in refusal(host, "restore", f"{tmp_path}/text")
    with open(f"{tmp_path}/short", "w", encoding="ascii") as file:
        file.write("text")
    assert "is not a checkpoint: it has only 4 bytes" in refusal(host, "restore", f"{tmp_path}/short")
    without_guests(host)


def test_a_file_that_was_damaged(hosts, saved):
    host, size = hosts[0], os.path.getsize(saved)
    checkpoint_file.flip(saved, RAM_AT + 64 * MIB + 4096)
    assert "damaged: its device state is not as it was written" in refusal(host, "restore", saved)
    os.truncate(saved, size - 4096)
    assert f"is truncated: {size - 4096} of its {size} bytes are there" in refusal(host, "restore", saved)
    without_guests(host)


@pytest.mark.parametrize("options,sentence", [
    ({"version": 2}, "was written by a newer Ferry (format 2; this one reads 1)"),
    ({"features": 0x10}, "was written by a newer Ferry: it uses features (0x10)"),
    ({"sections": [(77, 1, b"")]}, "was written by a newer Ferry: it has a section (kind 77)"),
])
def test_a_newer_ferrys(hosts, tmp_path, options, sentence):
    assert sentence in refusal(hosts[0], "restore", str(checkpoint_file.write(tmp_path / "new", **options)))
    without_guests(hosts[0])


def test_a_guest_that_runs(hosts, saved):
    host = hosts[0]
    host.xm("restore", saved)
    number = host.xm("list").splitlines()[-1].split()[1]
    assert f"Domain 'Native' exists already with ID {number}; destroy or rename that one first" in refusal(host, "restore", saved)
    host.xm("rename", "Native", "Other")
    said = refusal(host, "restore", saved)
    assert "The uuid " in said and f"is in use by domain 'Other' with ID {number}: they are the same guest" in said


def test_a_dry_run_says_what_a_start_would_say(hosts, kernel, tmp_path):
    """Kernels that are none, of all kinds, and what does not fit; and a guest that could boot."""
    whole = pathlib.Path(kernel).read_bytes()
    large = tmp_path / "large"
    with open(large, "wb") as file:
        file.truncate(20 << 20)
    for content, ramdisk, sentence in ((b"#!/bin/sh\n", None, "The kernel is no kernel"), (b"", None, "The kernel is"),
                                       (whole[:200], None, "The kernel is"), (whole[:5000], None, "The kernel"), (os.urandom(65536), None, "The kernel is no kernel"),
                                       (whole, large, "The ramdisk of 20 MiB is too large for the guest's memory of 16 MiB")):
        image = tmp_path / "image"
        image.write_bytes(content)
        config = pathlib.Path(hosts[0].write_config("Native", str(image), 16, 1, ""))
        if ramdisk:
            config.write_text(config.read_text() + f"ramdisk = '{ramdisk}'\n")
        said = refusal(hosts[0], "create", "-n", str(config))
        assert sentence in said and said == refusal(hosts[0], "create", str(config))
    hosts[0].xm("create", "-n", hosts[0].write_config("Native", kernel, 16, 1, ""))
    without_guests(hosts[0])


def test_too_little_memory(hosts, tmp_path):
    mib = (os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // MIB + 1024) & ~3
    uuid = "cc0029f5-10a1-e6d0-3c92-19b0ea021f21"
    config = {"name": "Large", "uuid": uuid, "memory": mib, "vcpus": 1, "kernel": "/none"}
    path = checkpoint_file.write(tmp_path / "large", memory_mib=mib, domain={"name": "Large", "config": config})
    said = refusal(hosts[0], "restore", "--accept=kernel", str(path))
    assert f"Domain 'Large' needs {mib + 8} MiB" in said and "MiB left for guests; end another guest" in said
    without_guests(hosts[0])


def test_what_the_guest_needs_is_missing(hosts, saved):
    host = hosts[0]
    os.symlink(f"{TOP}/scripts", f"{host.root}/scripts")
    change(saved, vif=["mac=00:16:3e:00:00:01, bridge=nobridge0"])
    assert "Bridge nobridge0, which network device 0 of domain 'Native' is to join, does not exist" in refusal(host, "restore", saved)
    change(saved, vif=[], disk=["file:/nowhere/disk,xvda,w"])
    assert "Unable to open disk /nowhere/disk (xvda) of domain 'Native': No such file" in refusal(host, "restore", saved)
    without_guests(host)


def test_a_processor_without_the_features(hosts, saved):
    for processor in ((), ("vcpu", "vcpu")):  # the first, the second
        there = shutil.copy(saved, f"{saved}.{len(processor)}")
        checkpoint_file.alter(there, state=set_number("I", 0xffffffff, *processor, ("function", 7), ("index", 0), "ebx"))
        said = refusal(hosts[0], "restore", there)
        assert "This host's processor lacks features that the guest uses: " in said and "Run the guest on a host that has them" in said
        without_guests(hosts[0])


def test_a_state_that_kvm_refuses(hosts, saved):
    checkpoint_file.alter(saved, state=set_number("Q", (1 << 64) - 1, "sregs", "cr4"))
    assert "KVM refuses a processor's " in refusal(hosts[0], "restore", saved)
    without_guests(hosts[0])


def test_a_state_of_another_machine(hosts, saved):
    checkpoint_file.alter(saved, state=lambda records: records.replace(b"virtio-rng", b"virtio-xyz"))
    assert "virtio-rng" in refusal(hosts[0], "restore", saved)
    without_guests(hosts[0])


def test_a_place_where_nothing_can_be_saved(hosts, heartbeat, kernel, tmp_path):
    host = hosts[0]
    start(host, heartbeat, kernel, line=LINE)
    there = f"{tmp_path}/there"
    with open(there, "wb"):
        pass
    assert "exists already; choose another name, or use --force" in refusal(host, "save", "Native", there)
    assert "No such file or directory" in refusal(host, "save", "Native", f"{tmp_path}/no/where")
    assert "Is a directory" in refusal(host, "save", "Native", str(tmp_path))
    assert "is not a file and is not replaced" in refusal(host, "save", "--force", "Native", "/dev/null")
    assert "Domain 'None'" in refusal(host, "save", "None", there)
    assert os.listdir(tmp_path) == ["there"] and os.path.getsize(there) == 0


def test_a_page_of_a_guests_memory_that_fails_is_named(hosts, heartbeat, kernel):
    """The signal that says so comes from here: a test that breaks the machine's memory would outlive itself."""
    start(hosts[0], heartbeat, kernel, memory=64, line="tsc_khz=2000000 touch=4")
    guest, = processes(hosts[0], "ferry-guest")
    os.kill(guest, signal.SIGBUS)
    wait_for(lambda: names(hosts[0]) == ["Domain-0"], "the end of the guest")
    said = read(f"{hosts[0].root}/xend.log")
    assert f"[{guest}]: ERROR: A page of the guest's memory has failed (SIGBUS): the host's memory is broken or used up;" in said, said[-3000:]

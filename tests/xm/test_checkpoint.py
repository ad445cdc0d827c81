"""xm checkpoint: a file is looked at without xend, and each thing that can be wrong with it has its own sentence."""
import os
import subprocess

import checkpoint_file
import pytest
from checkpoint_file import PAGE, RAM_AT, record

RECORDS = [record("clock"), record("vcpu", 0), record("vcpu", 1), record("virtio-blk", 4)]


@pytest.fixture
def file(tmp_path):
    return checkpoint_file.write(tmp_path / "t.checkpt", records=RECORDS)


def look(xend, *words):
    """Without any xend: where its socket should be there is nothing, and its configuration is none."""
    xend.socket = "/nowhere/socket"
    return xend.xm("checkpoint", *map(str, words))


def test_tells_what_is_in_it(xend, file):
    status, out, err = look(xend, file)
    assert (status, err) == (0, "")
    facts = dict(line.split(": ", 1) for line in out.splitlines() if not line.startswith(" "))
    facts = {key.strip(): value for key, value in facts.items()}
    assert facts["name"] == "TestGuest" and facts["uuid"] == "cc0029f5-10a1-e6d0-3c92-19b0ea021f21"
    assert facts["taken"].startswith("2001-09-09 ") and facts["taken"].endswith(" on host1 by ferry 0.1.0")
    assert facts["memory"] == "4 MiB, 0.0 MiB of it stored" and facts["vcpus"] == "1"
    assert facts["size on disk"].endswith(" MiB, 6.0 MiB with its holes")
    assert facts["compressed"] == "no" and "--verify" in facts["digests"]
    assert [line.split(": ")[1] for line in out.splitlines()[-4:-1]] == ["clock", "vcpu (2)", "virtio-blk"]


def test_verify_says_that_it_is_whole(xend, file):
    status, out, err = look(xend, "--verify", file)
    assert (status, err) == (0, "") and "digests       : whole" in out


def test_verify_looks_at_the_disks(xend, tmp_path):
    paths = [tmp_path / name for name in ("a", "b", "c")]
    for number, path in enumerate(paths):
        path.write_bytes(bytes(200000) + bytes([number]) * 70000 + bytes(12345))
    config = {"disk": [f"file:{paths[0]},xvda,w", f"file:{paths[1]},xvdb,r", f"file:{paths[2]},xvdc,w", ",xvdd:cdrom,r"]}
    disks = [checkpoint_file.portrait(paths[0], "xvda"), checkpoint_file.portrait(paths[1], "xvdb", "r"), None, None]
    file = checkpoint_file.write(tmp_path / "t.checkpt", domain={"config": config}, disks=disks)
    said = [line[16:] for line in look(xend, "-v", file)[1].splitlines() if str(tmp_path) in line]
    assert said == [f"{paths[0]} (xvda) is as it was", f"{paths[1]} (xvdb) is as it was",
                    f"{paths[2]} (xvdc) may have been written since: the checkpoint does not say"]
    checkpoint_file.flip(paths[0], 0)
    checkpoint_file.flip(paths[1], 282344)
    os.unlink(paths[2])
    status, out, err = look(xend, "-v", file)
    said = [line[16:] for line in out.splitlines() if str(tmp_path) in line]
    assert (status, err) == (0, "")  # of the file there is nothing wrong
    assert said[0].startswith(f"Disk {paths[0]} (xvda) was written after the checkpoint was taken")
    assert said[1].startswith(f"Disk {paths[1]} (xvdb), which the guest only reads, was written")
    assert "digests       : whole" in out


def test_verify_names_the_damaged_places(xend, file):
    checkpoint_file.flip(file, RAM_AT + 700 * PAGE + 99)
    assert look(xend, file)[0] == 0  # it did not look there
    status, out, err = look(xend, "-v", file)
    assert status == 1 and "1 of the 2 parts of its memory" in err
    assert f"memory in its bytes {RAM_AT + 512 * PAGE} to {RAM_AT + 1024 * PAGE - 1}" in out


def test_what_a_terminal_would_obey_is_not_printed(xend, tmp_path):
    path = checkpoint_file.write(tmp_path / "c", domain={"name": "a\x1b[2Jb\u009bc\nd"}, records=[record("x\x07y")])
    out = look(xend, path)[1]
    assert ": a\\x1b[2Jb\\u{9b}c\\nd\n" in out and ": x\\x07y\n" in out and "\x1b" not in out


def cut(size):
    return lambda path: os.truncate(path, size)


def overwrite(at, data):
    def apply(path):
        with open(path, "r+b") as file:
            file.seek(at)
            file.write(data)
    return apply


@pytest.mark.parametrize("change,sentence", [
    (cut(100), "The file is not a checkpoint: it has only 100 bytes."),
    (overwrite(0, b"\x7fELF"), "The file is not a checkpoint."),
    (overwrite(0, bytes(PAGE)), "The checkpoint was never finished: its save was interrupted."),
    (cut(RAM_AT + PAGE), "The checkpoint is truncated: 2101248 of its 6307840 bytes are there."),
    (overwrite(RAM_AT + (4 << 20) + 4 * PAGE, b"more"), "The checkpoint is damaged: it is longer than it was written."),
    (overwrite(60, b"\x07"), "The checkpoint is damaged: its header is not as it was written."),
    (overwrite(RAM_AT + (4 << 20), b" "), "The checkpoint is damaged: its description is not as it was written."),
    (overwrite(RAM_AT + (4 << 20) + PAGE, b" "), "The checkpoint is damaged: its device state is not as it was written."),
    (overwrite(RAM_AT + (4 << 20) + 2 * PAGE, b" "), "The checkpoint is damaged: its extent table is not as it was written."),
    (overwrite(RAM_AT + (4 << 20) + 3 * PAGE, b" "), "The checkpoint is damaged: its footer is not as it was written."),
    (os.unlink, "Unable to read file {path}: No such file or directory."),
])
def test_each_fault_has_its_sentence(xend, file, change, sentence):
    change(file)
    assert look(xend, file) == (1, "", f"Error: {sentence.format(path=file)}\n")


@pytest.mark.parametrize("options,sentence", [
    ({"version": 2}, "The checkpoint was written by a newer Ferry (format 2; this one reads 1)."),
    ({"features": 5}, "The checkpoint was written by a newer Ferry: it uses features (0x4) that this one does not know."),
    ({"sections": [(9, 1, b"new")]},
     "The checkpoint was written by a newer Ferry: it has a section (kind 9) that this one does not know."),
])
def test_a_newer_ferrys(xend, tmp_path, options, sentence):
    assert look(xend, checkpoint_file.write(tmp_path / "c", **options)) == (1, "", f"Error: {sentence}\n")


def test_an_optional_section_is_skipped(xend, tmp_path):
    assert look(xend, "-v", checkpoint_file.write(tmp_path / "c", sections=[(9, 0, b"new")]))[0] == 0


def test_what_is_no_file(xend, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo"):
        assert look(xend, path) == (1, "", f"Error: Unable to read file {path}: it is not a file.\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become somebody else")
def test_a_file_of_somebody_elses(xend, file):
    os.chmod(file, 0o600)
    done = subprocess.run([os.environ["XM"], "checkpoint", "/proc/self/fd/0"], user=65534, stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=120, env={"LC_ALL": "C"}, check=False)
    assert done.returncode == 1 and "it is not a file" in done.stderr
    with open(file, "rb") as opened:
        done = subprocess.run([os.environ["XM"], "checkpoint", "/proc/self/fd/0"], user=65534, stdin=opened,
                              capture_output=True, text=True, timeout=120, env={"LC_ALL": "C"}, check=False)
    assert done.returncode == 1 and done.stderr == "Error: Unable to read file /proc/self/fd/0: Permission denied.\n"

"""What the lab's guests boot: kernel and ramdisk (on a disk that the hosts mount at /boot), and their disk."""

import hashlib
import json
import os
import random
import shutil
import subprocess
from pathlib import Path

from . import packages
from .archive import Tree
from .images import LAB, base_tree, built, busybox, cached_image, content_key, sources_key
from .kernel import Modules, elf_of_bzimage

MODULES = ["virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "virtio_rng", "evdev", "button",
           "pvpanic_mmio"]
NFS_MODULES = ["nfsv4"]  # for a root file system on NFS
PROGRAMS = ["bash", "e2fsck", "dd", "sha256sum", "stat", "timeout", "apache2"]
APACHE_MODULES = ["mpm_event", "authz_core"]
DISK_MIB = 384
LARGE_FILE_MIB = 32


def large_file():
    """What guests serve as /large: the same bytes each time."""
    return random.Random(13).randbytes(LARGE_FILE_MIB << 20)


def downloads(large):
    """What there is to be downloaded: name → content. The second is made by lab/guest/root/var/www/cgi-bin/steady."""
    return {"large": large, "cgi-bin/steady": large[:4 << 20] * 4}


def _ramdisk(kernel_tree, trees, names):
    tree = Tree()
    for name in ("proc", "sys", "dev", "root"):
        tree.directory(name)
    tree.file("bin/busybox", busybox(trees), 0o755)
    for applet in ("sh", "mount", "umount", "insmod", "cat", "usleep", "switch_root", "ls", "dmesg", "poweroff",
                   "reboot", "ip", "ping", "dd", "free", "echo", "sleep", "ps", "date", "mkdir"):
        tree.link(f"bin/{applet}", "busybox")
    tree.text("modules", "\n".join(Modules(kernel_tree).add_to(tree, names)) + "\n")
    tree.link("lib", "usr/lib")
    tree.file("init", LAB / "guest" / "ramdisk" / "init", 0o755)
    return tree


def make_ext4(image, content, mebibytes, journal=True):
    """Writes an ext4 file system with the content of a directory; all in it is root's."""
    with open(image, "wb") as file:
        file.truncate(mebibytes << 20)
    options = [] if journal else ["-O", "^has_journal"]
    subprocess.run(["/sbin/mke2fs", "-q", "-F", "-t", "ext4", *options, "-b", "4096", "-m", "0", "-N", "8192",
                    "-E", "root_owner=0:0,lazy_itable_init=0,nodiscard", "-d", str(content), str(image)],
                   check=True, timeout=600)
    if os.getuid() == 0:
        return
    # mke2fs copies the owners too; whoever makes this, it is root's in the guest.
    commands = []
    for path in sorted(Path(content).rglob("*")):
        for field in ("uid", "gid"):
            commands.append(f'set_inode_field "/{path.relative_to(content)}" {field} 0')
    subprocess.run(["/sbin/debugfs", "-w", "-f", "-", str(image)], input="\n".join(commands) + "\n", text=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True, timeout=600)


def guest_image():
    """The directory with boot.img (the hosts' /boot), storage.img (storage's, with the guests' disk) and guest.json."""
    kernel_tree, trees = packages.fetch()
    agent, pulse = built("ferry-lab-agent"), built("ferry-lab-pulse")

    def make(directory):
        boot = directory / "boot"
        boot.mkdir()
        bzimage = next((kernel_tree / "boot").glob("vmlinuz-*"))
        shutil.copy(bzimage, boot / "vmlinuz")
        (boot / "vmlinux").write_bytes(elf_of_bzimage(bzimage))
        _ramdisk(kernel_tree, trees, MODULES).write_cpio(boot / "ramdisk")
        _ramdisk(kernel_tree, trees, MODULES + NFS_MODULES).write_cpio(boot / "ramdisk-nfs")
        make_ext4(directory / "boot.img", boot, 128, journal=False)
        shutil.rmtree(boot)

        tree = base_tree(trees, PROGRAMS)
        tree.copy_tree(LAB / "guest" / "root")
        for name in [n for n in tree.entries if n.startswith("sbin/")]:
            tree.entries["usr/" + name] = tree.entries.pop(name)
        tree.link("usr/sbin/init", "/usr/bin/busybox")
        tree.file("usr/bin/ferry-lab-agent", agent, 0o755)
        tree.file("usr/bin/pulse", pulse, 0o755)
        for name in APACHE_MODULES:
            module = f"usr/lib/apache2/modules/mod_{name}.so"
            tree.file(module, next(t / module for t in trees if (t / module).exists()))
        tree.library("libgcc_s.so.1", "apache2")  # by glibc's pthread_exit
        large = large_file()
        tree.text("var/www/large", large)
        tree.text("var/www/index.html", "<html><body>It works: this is a Ferry test guest.</body></html>\n")
        tree.directory("var/journal")
        root = directory / "root"
        tree.write_directory(root)
        storage = directory / "storage"
        (storage / "var" / "disks").mkdir(parents=True)
        make_ext4(storage / "var" / "disks" / "base.img", root, DISK_MIB)
        make_ext4(directory / "storage.img", storage, 16384, journal=False)
        shutil.rmtree(root)
        shutil.rmtree(storage)
        (directory / "guest.json").write_text(json.dumps({
            "large_size": len(large), "kernel": bzimage.name,
            "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in downloads(large).items()}}))

    key = content_key(str(kernel_tree), [str(t) for t in trees], agent, pulse, sources_key("guest"),
                      Path(__file__), LAB / "ferrylab" / "archive.py", LAB / "ferrylab" / "kernel.py")
    return cached_image("guest", key, make)

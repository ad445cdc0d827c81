"""What the emulated hosts boot: Debian's kernel as ELF, an initramfs, and Ferry as built in a second archive."""

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from . import packages
from .agent import LabError
from .archive import Tree
from .kernel import Modules, elf_of_bzimage

LAB = Path(__file__).resolve().parent.parent
REPOSITORY = LAB.parent

# In loading order: for every host, and besides for the hosts of guests (their bridge is made by Ferry's
# network-bridge script when xend starts).
MODULES = ["virtio_pci", "virtio_console", "virtio_net", "virtio_blk", "virtio_rng", "loop"]
GUEST_HOST_MODULES = ["kvm-amd", "tun", "bridge", "nbd", "sch_netem", "sch_tbf"]
# Loaded with modprobe where they are needed: network_storage.py, bench/emulated.py.
LATER_MODULES = ["nfsd", "nfsv4", "aoe", "dm-mod", "veth"]
# A processor that waits must not spin: others need this machine's few.
MODULE_OPTIONS = {"kvm": "halt_poll_ns=0"}

# Programs of the packages, by name; busybox has the rest.
HOST_PROGRAMS = [
    "ip", "bridge", "brctl", "ping", "qemu-nbd", "nbd-client", "strace", "ps", "top", "pgrep", "free", "vmstat",
    "bash", "cp", "dd", "mv", "ls", "stat", "timeout", "truncate", "sha256sum", "mke2fs", "e2fsck", "tc", "socat",
    "mount.nfs", "exportfs", "rpc.nfsd", "rpc.mountd", "vblade", "lvm", "dmsetup",
]


def build_directory():
    """Where Ferry is built: $FERRY_BUILD, or build/ in the repository."""
    return Path(os.environ.get("FERRY_BUILD") or REPOSITORY / "build").resolve()


def built(name):
    path = build_directory() / "lab" / name
    if not path.exists():
        raise LabError(f"{path} is not built: run 'meson setup --prefix=/usr build && ninja -C build' first")
    return path


def programs_of(trees):
    """Every program in the packages: name → path."""
    found = {}
    for tree in trees:
        for part in ("usr/sbin", "sbin", "usr/bin", "bin"):
            if (tree / part).is_dir():
                for path in (tree / part).iterdir():
                    found.setdefault(path.name, path)
    return found


def busybox(trees):
    return programs_of(trees)["busybox"]


def base_tree(trees, programs):
    """A root file system with busybox for all its names and the wanted programs of the packages."""
    tree = Tree(trees)
    for name in ("bin", "sbin", "lib", "lib64"):
        tree.link(name, f"usr/{name}")
        tree.directory(f"usr/{name}")
    for name in ("proc", "sys", "dev", "run", "var/log", "var/lib", "mnt", "root", "home"):
        tree.directory(name)
    tree.directory("tmp", 0o1777)
    tree.link("var/run", "/run")
    tree.file("usr/bin/busybox", busybox(trees), 0o755)
    applets = subprocess.run([str(busybox(trees)), "--list"], text=True, capture_output=True, check=True)
    for applet in applets.stdout.split():
        if applet != "busybox":
            tree.link(f"usr/bin/{applet}", "busybox")
    available = programs_of(trees)
    for name in programs:
        if name not in available:
            raise LabError(f"none of the lab's packages has the program {name}")
        tree.file(f"usr/bin/{name}", available[name], 0o755)
    return tree


def content_key(*parts):
    """A name for what is made of these: files, bytes, or anything that JSON can hold."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            part = part.read_bytes()
        elif not isinstance(part, bytes):
            part = json.dumps(part, sort_keys=True, default=str).encode()
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()[:16]


def sources_key(*directories):
    """Changes whenever a file of the lab that makes images does."""
    files = sorted(p for d in directories for p in (LAB / d).rglob("*") if p.is_file() and p.suffix != ".pyc")
    return content_key(*[x for p in files for x in (str(p.relative_to(LAB)), p)])


def cached_image(name, key, make):
    """A directory in the cache made once by make(directory)."""
    target = packages.cache_directory() / "images" / f"{name}-{key}"
    with packages.cache_lock():
        if not target.exists():
            target.parent.mkdir(exist_ok=True)
            part = Path(tempfile.mkdtemp(dir=target.parent, prefix="part-"))
            try:
                make(part)
            except BaseException:
                shutil.rmtree(part, ignore_errors=True)
                raise
            part.chmod(0o755)
            part.rename(target)
            _remove_stale(target.parent)
        os.utime(target)
    return target


def _remove_stale(directory):
    """Drops images that no lab has used for a day."""
    for image in directory.iterdir():
        if image.stat().st_mtime < time.time() - 86400:
            shutil.rmtree(image, ignore_errors=True)


def host_image():
    """The directory with vmlinux, base.cpio and base.json (the names in it)."""
    kernel_tree, trees = packages.fetch()
    agent = built("ferry-lab-agent")

    def make(directory):
        bzimage = next((kernel_tree / "boot").glob("vmlinuz-*"))
        (directory / "vmlinux").write_bytes(elf_of_bzimage(bzimage))
        tree = base_tree(trees, HOST_PROGRAMS)
        tree.link("usr/bin/sh", "bash")  # busybox's shell would prefer its own cp, ping and ip
        modules = Modules(kernel_tree)
        # In loading order, so that the first ones are those of the first list, and so on.
        paths = modules.add_to(tree, MODULES + GUEST_HOST_MODULES + LATER_MODULES)
        basic = paths[:len(modules.closure(MODULES))]
        every = paths[:len(modules.closure(MODULES + GUEST_HOST_MODULES))]
        tree.text("etc/modules.basic", "\n".join(basic) + "\n")
        tree.text("etc/modules.guests", "".join(
            f"{m} {MODULE_OPTIONS.get(Path(m).stem, '')}".rstrip() + "\n" for m in every if m not in basic))
        tree.file("usr/bin/ferry-lab-agent", agent, 0o755)
        tree.copy_tree(LAB / "host" / "etc", "etc")
        tree.file("init", LAB / "host" / "init", 0o755)
        tree.write_cpio(directory / "base.cpio")
        (directory / "base.json").write_text(json.dumps(sorted(tree.entries)))
        # A file system for what outlives a host's reset, or the loss of its power: made empty once, copied for each host.
        with open(directory / "data.img", "wb") as file:
            file.truncate(16 << 30)
        subprocess.run(["/sbin/mke2fs", "-q", "-F", "-t", "ext4", "-J", "size=16", "-L", "data",
                        "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", "-i", "65536", str(directory / "data.img")],
                       check=True, timeout=600)

    key = content_key(str(kernel_tree), [str(t) for t in trees], agent, sources_key("host"),
                       Path(__file__), LAB / "ferrylab" / "archive.py", LAB / "ferrylab" / "kernel.py")
    return cached_image("host", key, make)


def ferry_archive(directory, base):
    """Writes Ferry as built, and the libraries that the base lacks, to directory/ferry.cpio."""
    build = build_directory()
    stage = Path(directory) / "ferry"
    done = subprocess.run(["meson", "install", "-C", str(build), "--destdir", str(stage), "--no-rebuild", "--quiet"],
                          text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300, check=False)
    if done.returncode != 0:
        raise LabError(f"meson install of {build} failed:\n{done.stdout}")
    if (stage / "usr" / "local").exists():
        raise LabError(f"{build} is set up for /usr/local: run 'meson configure --prefix=/usr {build}' and build again")
    tree = Tree(packages.fetch()[1])
    for name in ("bin", "sbin", "lib", "lib64"):
        tree.directory(f"usr/{name}")
    if stage.exists():
        tree.copy_tree(stage)
    for name in [n for n in tree.entries if n.split("/")[0] in ("bin", "sbin", "lib", "lib64")]:
        tree.entries["usr/" + name] = tree.entries.pop(name)
    tree.without(set(json.loads((base / "base.json").read_text())))
    tree.write_cpio(Path(directory) / "ferry.cpio")
    shutil.rmtree(stage, ignore_errors=True)
    return Path(directory) / "ferry.cpio"


def extra_archive(directory, base, tree):
    """Writes what of a Tree the base lacks to directory/extra.cpio."""
    tree.without(set(json.loads((base / "base.json").read_text())))
    path = Path(directory) / "extra.cpio"
    tree.write_cpio(path)
    return path

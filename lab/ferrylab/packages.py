"""Debian packages for the lab's machines: downloaded once, unpacked, never installed.

The cache (${XDG_CACHE_HOME:-~/.cache}/ferry) is shared by all clones. A package that is there is used as it
is; only what is missing is downloaded, with apt-get as any user.
"""

import contextlib
import fcntl
import functools
import os
import re
import shutil
import subprocess
import tempfile
import urllib.parse
from pathlib import Path

from .agent import LabError

KERNEL = "linux-image-cloud-amd64"

# What the machines need beyond the build machine's own libraries.
PACKAGES = [
    "busybox-static",
    "iproute2", "libbpf1", "libelf1", "libmnl0", "libbsd0", "libmd0", "libcap2", "libdb5.3",
    "bridge-utils",
    "iputils-ping", "libidn2-0", "libunistring2",
    "nbd-client", "qemu-utils", "libnuma1", "libfuse3-3", "libaio1", "liburing2", "libglib2.0-0",
    "libgnutls30", "libp11-kit0", "libtasn1-6", "libnettle8", "socat", "libwrap0",
    "libhogweed6", "libgmp10", "libffi8", "libpcre2-8-0", "libnl-3-200", "libnl-genl-3-200",
    "e2fsprogs", "libext2fs2", "libcom-err2", "libss2", "libblkid1", "libuuid1", "logsave",
    "bash", "libtinfo6", "coreutils", "libacl1", "libattr1", "libselinux1",
    "procps", "libproc2-0", "strace", "libunwind8", "liblzma5", "libdw1", "libsystemd0",
    "libgcrypt20", "libgpg-error0", "liblz4-1", "libzstd1", "zlib1g", "libbz2-1.0",
    "nfs-kernel-server", "nfs-common", "libtirpc3", "libmount1",
    "vblade", "lvm2", "dmsetup", "libdevmapper1.02.1", "libdevmapper-event1.02.1", "libedit2", "libudev1",
    "apache2-bin", "libapr1", "libaprutil1", "libexpat1", "libcrypt1",
]

RENAMED = {"libfuse3-3": ["libfuse3-4"], "libunistring2": ["libunistring5"]}


def cache_directory():
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    path = Path(base) / "ferry"
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def cache_lock():
    with open(cache_directory() / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _version_key(path):
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def _cached(package):
    """The newest cached .deb of a package, or None."""
    found = sorted((cache_directory() / "debs").glob(f"{package}_*.deb"), key=_version_key)
    return found[-1] if found else None


@functools.cache
def _offered():
    done = subprocess.run(["apt-cache", "pkgnames"], text=True, capture_output=True, timeout=300, check=False)
    return set(done.stdout.split())


def _name(package):
    """What it is called here: Debian 13 has other names for libraries (those whose time became 64 bits wide, mostly)."""
    names = [package, f"{package}t64", *RENAMED.get(package, [])]
    return next((name for name in names if _cached(name)), None) or next(
        (name for name in names if name in _offered()), package)


def _download(packages):
    debs = cache_directory() / "debs"
    debs.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_directory(), prefix="download-") as directory:
        done = subprocess.run(["apt-get", "download", "-q", *packages], cwd=directory, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=900, check=False)
        if done.returncode != 0:
            raise LabError(f"cannot download {' '.join(packages)}; try 'apt-get update' as root first:\n{done.stdout}")
        for deb in Path(directory).glob("*.deb"):
            deb.rename(debs / deb.name)


def _kernel_package(meta):
    fields = subprocess.run(["dpkg-deb", "-f", str(meta), "Depends"], text=True, capture_output=True, check=True)
    match = re.search(r"linux-image-[\w.+-]+-cloud-amd64", fields.stdout)
    if not match:
        raise LabError(f"{meta} names no kernel package: {fields.stdout}")
    return match.group()


def _unpack(deb):
    target = cache_directory() / "unpacked" / urllib.parse.unquote(deb.stem)
    if not target.exists():
        target.parent.mkdir(exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=target.parent, prefix="part-"))
        subprocess.run(["dpkg-deb", "-x", str(deb), str(part)], check=True, timeout=300)
        part.chmod(0o755)
        part.rename(target)
    return target


def fetch():
    """Makes sure that all is in the cache. Returns (kernel's tree, [trees of the packages])."""
    for tool in ("apt-get", "dpkg-deb"):
        if not shutil.which(tool):
            raise LabError(f"{tool} is missing: the lab's images are made of Debian packages")
    with cache_lock():
        packages = [_name(package) for package in PACKAGES]
        missing = [p for p in [KERNEL, *packages] if not _cached(p)]
        if missing:
            _download(missing)
        kernel = _kernel_package(_cached(KERNEL))
        if not _cached(kernel):
            _download([kernel])
        return _unpack(_cached(kernel)), [_unpack(_cached(p)) for p in packages]

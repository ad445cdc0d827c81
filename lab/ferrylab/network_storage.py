"""Storage that both hosts reach, besides the guests' NBD disks: directories by NFS, volumes by ATA-over-Ethernet."""

from .guests import Disk, fresh_image

NFS_THREADS = 4
GRACE_SECONDS = 10  # the least that nfsd takes; by itself it has clients wait for 90 s


def export(directory, number):
    """The command by which storage lets the others mount a directory; `number` is one that no other has."""
    return f"exportfs -o rw,async,no_subtree_check,no_root_squash,insecure,fsid={number} 10.0.0.0/24:{directory}"


def withdraw(directory):
    """The command for the opposite; what is mounted at the directory is unmounted."""
    return (f"exportfs -u 10.0.0.0/24:{directory}; exportfs -f; "
            f"for n in $(seq 300); do mountpoint -q {directory} || break; umount {directory} || sleep 0.1; done")


class NfsShare:
    """A directory of `storage` that both hosts have mounted under the same path (NFS 4.2).

    With `mebibytes` it is a file system of that size, which can be full. Mounted "hard", as by default, whoever
    uses it waits for a server that is away; "soft,timeo=10,retrans=1" gives up after a few seconds.
    """

    def __init__(self, lab, name, mebibytes=None, options="hard"):
        self.lab, self.name, self.options = lab, name, options
        self.path = f"/mnt/{name}"
        self.directory = f"/exports/{name}"
        self.image = f"/var/disks/{name}.fs" if mebibytes else None
        lab.serve_nfs()
        script = f"mkdir -p {self.directory} /var/exports/{name} && "
        if mebibytes:
            script += (f"truncate -s {mebibytes}M {self.image} && mke2fs -q -F -t ext4 -O ^has_journal -m 0 {self.image}"
                       f" && mount -o loop {self.image} {self.directory}")
        else:
            script += f"mount --bind /var/exports/{name} {self.directory}"
        self.number = next(n for n in range(1, 100) if n not in [share.number for share in lab.shares])
        lab.storage.run(f"{script} && {export(self.directory, self.number)}")
        lab.shares.append(self)
        lab.on_hosts(self.mount)

    def mount(self, host):
        host.run(f"modprobe nfsv4 && mkdir -p {self.path} && mount.nfs storage:{self.directory} {self.path}"
                 f" -o vers=4.2,sec=sys,{self.options}")

    def remove(self):
        for host in self.lab.ferry_hosts():
            host.run(f"umount -f {self.path} || umount -l {self.path}", check=False)
        self.lab.storage.run(f"{withdraw(self.directory)}; rm -rf /var/exports/{self.name} {self.image or ''}",
                             check=False)
        self.lab.shares.remove(self)


class NfsDisk(Disk):
    """A guest's disk as a file of an NfsShare."""

    def __init__(self, lab, name, number, address=None, *, share):
        self.lab, self.number = lab, number
        self.device = f"{share.path}/{name}.img"
        self.entry = f"file:{self.device}"
        self.file = f"{share.directory}/{name}.img"
        lab.storage.run(fresh_image(self.file, name, address))

    def connect(self, host):
        """The share is mounted, or not; see NfsShare.mount."""

    def remove(self):
        self.lab.storage.run(f"rm -f {self.file}")
        self.lab.disks.remove(self)


class NfsRoot(Disk):
    """A guest's root file system as a directory of the NFS server: /XenGuestRoots/NAME, as in the book's listing 13.22."""

    def __init__(self, lab, name, number, address=None):
        self.lab, self.number = lab, number
        self.entry = None
        self.directory = f"/XenGuestRoots/{name}"
        self.file = f"/var/disks/{name}-root.img"
        lab.serve_nfs()
        lab.storage.run(f"{fresh_image(self.file, name, address)} && mkdir -p {self.directory} && "
                        f"mount -o loop {self.file} {self.directory} && {export(self.directory, 100 + number)}")

    def connect(self, host):
        """The guest connects to it itself."""

    def _withdraw(self):
        # A guest that has ended does not say so to the server: without this, its files stay open there for a while.
        self.lab.storage.run("for client in /proc/fs/nfsd/clients/*; do grep -q '\"10.0.0.[12]:' $client/info || "
                             f"echo expire > $client/ctl; done; {withdraw(self.directory)}", check=False)

    def check(self):
        self._withdraw()
        return super().check()

    def remove(self):
        self._withdraw()
        self.lab.storage.run(f"rm -f {self.file}")
        self.lab.disks.remove(self)


class AoeVolume(Disk):
    """The volume NAME-volume of LVM's VolumeGroup0, which is on a disk that storage exports with ATA-over-Ethernet, as in the
    book's listing 13.21. There is one such disk: shelf 0, slot 0."""

    def __init__(self, lab, name, number, address=None):
        self.lab, self.number = lab, number
        self.device = f"/dev/VolumeGroup0/{name}-volume"
        self.entry = f"phy:{self.device}"
        self.disk = "/var/disks/e0.0.img"
        image = f"/var/disks/{name}-volume.img"
        # Made on storage, which then forgets about it: from there on it is the hosts'.
        lab.storage.run(
            f"{fresh_image(image, name, address)} && modprobe dm-mod && truncate -s 512M {self.disk} && "
            f"losetup /dev/loop7 {self.disk} && lvm pvcreate -q /dev/loop7 && lvm vgcreate -q VolumeGroup0 /dev/loop7 && "
            f"lvm lvcreate -q -W n -L $(stat -c %s {image})b -n {name}-volume VolumeGroup0 && "
            f"dd if={image} of={self.device} bs=1M conv=sparse 2>/dev/null && sync && lvm vgchange -q -an VolumeGroup0 && "
            f"losetup -d /dev/loop7 && rm {image} && "
            f"{{ setsid vblade 0 0 eth0 {self.disk} </dev/null >/run/vblade.log 2>&1 & echo $! > /run/vblade.pid; }}")
        lab.on_hosts(self.connect)

    def connect(self, host):
        host.run("modprobe aoe && modprobe dm-mod && echo > /dev/etherd/discover && "
                 "for n in $(seq 600); do [ -b /dev/etherd/e0.0 ] && break; sleep 0.1; done; "
                 "lvm vgchange -q -ay VolumeGroup0")

    def check(self):
        host = self.lab.ferry_hosts()[0]
        host.run(f"e2fsck -p -E journal_only {self.device}", check=False)
        return host.run(f"e2fsck -fn {self.device}").stdout

    def remove(self):
        for host in self.lab.ferry_hosts():
            host.run("lvm vgchange -q -an VolumeGroup0; rmmod aoe", check=False)
        self.lab.storage.run(f"pid=$(cat /run/vblade.pid); kill $pid; while kill -0 $pid; do sleep 0.05; done; rm -f {self.disk}", check=False)
        self.lab.disks.remove(self)


class NetworkStorage:
    """Mixed into Lab: what of `storage` serves more than one guest."""

    def __init__(self):
        super().__init__()
        self.shares = []
        self.nfs_serves = None  # None: not yet started

    def serve_nfs(self):
        """Starts the NFS server of storage, once."""
        if self.nfs_serves is not None:
            return
        self.storage.run(
            "modprobe nfsd && mkdir -p /var/lib/nfs/v4recovery /exports && touch /etc/exports /var/lib/nfs/etab && "
            f"mount -t nfsd nfsd /proc/fs/nfsd && echo {GRACE_SECONDS} > /proc/fs/nfsd/nfsv4gracetime && "
            f"echo {GRACE_SECONDS} > /proc/fs/nfsd/nfsv4leasetime && rpc.mountd -N 3")
        self.nfs_serves = False
        self.nfs_up()
        self.storage.run("echo Y > /proc/fs/nfsd/v4_end_grace")  # there is nobody yet who could claim anything

    def nfs_down(self):
        """The NFS server refuses every connection until nfs_up()."""
        self.nfs_serves = False
        self.storage.run("rpc.nfsd 0")

    def nfs_up(self):
        if self.nfs_serves is False:
            self.storage.run(f"rpc.nfsd -N 3 -V 4.2 {NFS_THREADS}")
            self.nfs_serves = True

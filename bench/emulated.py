"""The bench where this machine's KVM does not work: all of it, Ferry and QEMU, in an emulated host of the lab.

Such a host has a true /dev/kvm, but its processor is QEMU's software emulation: everything takes many times as long, and some things
(an exit of the guest, say) grow more than others. The figures are for seeing that the bench works and who does more, not how fast.
"""

import os
import shutil
import sys
import sysconfig
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "lab"))

from ferrylab import Lab, LabError
from ferrylab.agent import EXIT, STDERR
from ferrylab.archive import Tree

ROWS = r"256 MiB$|^(warm|save|restore), 64 MiB"  # unless the user asks for others: the smallest of their kind
MEMORY = 6144  # MiB of the host: a guest of 4 GiB, and what a row wants at hand
LONGEST_S = 24 * 3600

FERRY = ["src/xend/xend", "src/xm/xm", "src/vmm/ferry-guest", "src/carry/ferry-carrier", "bench/guest/bench-guest"]
FIRMWARE = ["bios-256k.bin", "kvmvapic.bin", "linuxboot_dma.bin", "pvh.bin"]  # that QEMU's PC loads
FIRMWARE_PLACES = ["/usr/share/qemu", "/usr/share/seabios"]
NOT_NEEDED = {"config-", "test", "lib2to3", "distutils", "pydoc_data", "ensurepip", "idlelib", "dist-packages", "site-packages"}


def add_python(tree):
    """This interpreter with its standard library, where they are here."""
    tree.file(sys.executable, sys.executable, 0o755)
    library = sysconfig.get_path("stdlib")
    for directory, inner, names in os.walk(library):
        inner[:] = [name for name in inner if not any(name.startswith(word) for word in NOT_NEEDED)]
        for name in names:
            if os.path.exists(f"{directory}/{name}"):
                tree.file(f"{directory}/{name}", f"{directory}/{name}")


def bench_tree(build):
    """What the emulated host needs besides what every host of the lab has."""
    tree = Tree()
    for name in ("lib", "lib64"):
        tree.directory(f"usr/{name}")
    add_python(tree)
    for program in ("qemu-system-x86_64", "iperf3"):
        path = shutil.which(program)
        if not path:
            raise LabError(f"the bench needs the program {program}: run scripts/install-deps")
        tree.file(f"usr/bin/{program}", path, 0o755)
    for name in FIRMWARE:
        path = next((f"{place}/{name}" for place in FIRMWARE_PLACES if os.path.exists(f"{place}/{name}")), None)
        if not path:
            raise LabError(f"QEMU's firmware {name} is not in {' or '.join(FIRMWARE_PLACES)}: run scripts/install-deps")
        tree.file(f"usr/share/qemu/{name}", path)
    for name in FERRY:
        tree.file(f"bench/build/{name}", f"{build}/{name}")
    for path in Path(__file__).parent.glob("*.py"):
        tree.file(f"bench/{path.name}", path)
    return tree


def pass_through(kind, payload):
    if kind != EXIT:
        stream = sys.stderr.buffer if kind == STDERR else sys.stdout.buffer
        stream.write(payload)
        stream.flush()


def run(options):
    """The bench with the user's --rows, --runs and --json in an emulated host; its exit status."""
    os.environ["FERRY_BUILD"] = options.build = os.path.abspath(options.build)
    print(
        "These are figures of an EMULATED host: Ferry and QEMU both run in a host of the lab, whose one processor, with the KVM\n"
        "in it, is QEMU's software emulation. Everything takes many times as long as on a machine, and not everything as many times:\n"
        "nothing here tells how fast either is, and what was to be reached is for machines.",
        flush=True,
    )
    try:
        with Lab(["host1"], memory={"host1": MEMORY}, extra=bench_tree(options.build)) as lab:
            host = lab.host1
            host.run("modprobe veth && mkdir -p /var/tmp")
            command = [
                sys.executable, "-u", "/bench/bench.py", "--build", "/bench/build", "--emulated-khz", str(lab.counter_khz),
                "--rows", ROWS if options.rows is None else options.rows, "--runs", str(options.runs or 1),
                *(["--json", "/var/tmp/figures.json"] if options.json else []),
            ]
            status = host.spawn(command, on_output=pass_through).wait(LONGEST_S).status
            if options.json and status == 0:
                Path(options.json).write_bytes(host.get("/var/tmp/figures.json"))
            return status
    except LabError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1

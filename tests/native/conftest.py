"""Tests on this machine's own /dev/kvm, with the bench guest, which runs in ring 3 and so natively even where KVM
cannot run Linux. Where no KVM works at all they are skipped, and say so."""

import contextlib
import os
import random
import shutil
import socket
import sys
import tempfile

import pytest

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(TOP, "bench"))
sys.path.insert(0, os.path.join(TOP, "tests/tools"))
BUILD = os.environ.get("FERRY_BUILD", os.path.join(TOP, "build"))
CONNECTIONS = int(os.environ.get("FERRY_CONNECTIONS", "0"))  # xend-relocation-connections, where a test does not say


@pytest.fixture(scope="session")
def kernel():
    return os.path.join(BUILD, "bench/guest/bench-guest")


@pytest.fixture(scope="session")
def native_kvm(kernel):
    """Tries it: QEMU runs the bench guest for a moment. Independent of Ferry, so that a bug of Ferry's never skips a test."""
    if os.geteuid() != 0:
        pytest.skip("xend needs root: this machine's KVM was not tried")
    from qemu import BEATS_ENOUGH, beats_here

    beats = beats_here(kernel)
    if beats < BEATS_ENOUGH:
        pytest.skip(f"this machine's KVM ran the bench guest for {beats} beats: it does not work")


def free_port():
    """None of those that Linux gives to who connects (ip_local_port_range): while its host is down, nobody takes it."""
    while True:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", random.randrange(10000, 32768)))
                return probe.getsockname()[1]
            except OSError:
                continue


def side_by_side(places=None, **settings):
    """Two xends, on ports of this machine or at `places`: (command prefix, address, port) of each."""
    from ferry import Host

    root = tempfile.mkdtemp(prefix="ferry-", dir="/tmp")
    made = []
    with contextlib.ExitStack() as ends:
        ends.callback(shutil.rmtree, root)
        for number in (0, 1):
            prefix, address, port = places[number] if places else ((), "127.0.0.1", free_port())
            made.append(Host(f"{root}/{number + 1}", BUILD, port, prefix, address, **{"connections": CONNECTIONS, **settings}))
            ends.callback(made[number].close)
        if not settings.get("clear_text"):
            made[0].trust(made[1])
            made[1].trust(made[0])
        yield made


@pytest.fixture
def hosts(native_kvm):
    """Two xends side by side, which trust each other."""
    yield from side_by_side()


@pytest.fixture
def clear_hosts(native_kvm):
    """The same with a line between them that can be read, and with room for a third on the same address."""
    yield from side_by_side(clear_text=True)


@pytest.fixture
def spread_hosts(native_kvm):
    """Memory goes over two data connections."""
    yield from side_by_side(connections=2)


@pytest.fixture
def clear_spread_hosts(native_kvm):
    yield from side_by_side(connections=2, clear_text=True)


@pytest.fixture
def heartbeat():
    from heartbeat import Heartbeat

    beats = Heartbeat()
    yield beats
    beats.close()

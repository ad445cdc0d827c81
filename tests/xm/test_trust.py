"""xm trust: what it shows, what it asks, and what it tells xend."""
import os
import pty
import subprocess

import pytest

from conftest import XM

OWN = "SHA256:" + "A" * 43
OLD = "SHA256:" + "B" * 43
NEW = "SHA256:" + "C" * 43


def meets(xend, trusted=""):
    xend.routes["POST", "/trust/identify"] = (200, {"fingerprint": NEW, "address": "10.0.0.2", "trusted": trusted})
    xend.routes["POST", "/trust"] = xend.routes["POST", "/trust/forget"] = (200, {})


def posts(xend):
    return [(path, body) for method, path, body in xend.asked if method == "POST"]


TRUSTED = ("/trust", {"host": "host2", "address": "10.0.0.2", "fingerprint": NEW, "port": 0})


def test_list(xend):
    xend.routes["GET", "/trust"] = (200, {"fingerprint": OWN, "clear_text": False, "authority": False, "hosts": []})
    assert xend.xm("trust") == (0, f"This host's key: {OWN}\nNo other host is trusted yet: xm trust <Host>\n", "")
    xend.routes["GET", "/trust"] = (200, {"fingerprint": OWN, "clear_text": True, "authority": True, "hosts": [
        {"host": "10.0.0.2", "address": "", "fingerprint": NEW, "since": 1200000000}]})
    status, out, _ = xend.xm("trust")
    lines = out.splitlines()
    assert status == 0 and len(lines) == 5
    assert "in clear text" in lines[1] and "authority" in lines[2]
    assert lines[4].split() == ["10.0.0.2", NEW, "2008-01-10"]


def test_accept(xend):
    meets(xend)
    status, out, _ = xend.xm("trust", "--accept", "-p", "8003", "host2")
    assert status == 0 and f"host2 has the key {NEW}." in out and "It must trust this host as well" in out
    assert posts(xend) == [("/trust/identify", {"host": "host2", "port": 8003}), ("/trust", {**TRUSTED[1], "port": 8003})]


def test_without_anybody_to_ask(xend):
    meets(xend)
    status, _, errors = xend.xm("trust", "host2")
    assert status == 1 and "xm trust --accept host2" in errors
    assert [path for path, _ in posts(xend)] == ["/trust/identify"]


@pytest.mark.parametrize("answer, status", [("yes", 0), ("y", 0), ("no", 1), ("", 1), ("yessir", 1)])
def test_asked(xend, answer, status):
    meets(xend)
    master, slave = pty.openpty()
    os.write(master, answer.encode() + b"\n")
    done = subprocess.run([XM, "trust", "host2"], stdin=slave, capture_output=True, text=True, timeout=120,
                          env=xend.environment())
    os.close(master)
    os.close(slave)
    assert done.returncode == status
    assert "(yes/no)?" in done.stdout
    assert (TRUSTED in posts(xend)) == (status == 0)


def test_known_and_changed(xend):
    meets(xend, NEW)
    assert xend.xm("trust", "host2") == (0, f"host2 is trusted already: {NEW}\n", "")
    meets(xend, OLD)
    status, _, errors = xend.xm("trust", "--accept", "host2")
    assert status == 1
    for part in ("The key of host2 has changed", OLD, NEW, "xm trust --forget host2 && xm trust host2"):
        assert part in errors
    assert "/trust" not in [path for path, _ in posts(xend)]


def test_a_key_given(xend):
    meets(xend)
    assert xend.xm("trust", "--fingerprint", NEW, "host2")[0] == 0
    assert posts(xend) == [("/trust", {"host": "host2", "address": "", "fingerprint": NEW})]


def test_forget(xend):
    meets(xend)
    assert xend.xm("trust", "--forget", "host2") == (0, "", "")
    assert posts(xend) == [("/trust/forget", {"host": "host2"})]
    xend.routes["POST", "/trust/forget"] = (200, {"forgotten": ["10.0.0.2", "host2"]})
    assert xend.xm("trust", "--forget", "host2") == (0, "10.0.0.2 is not trusted any more either: it is the same key.\n", "")


def test_without_a_host(xend):
    for option in ("--forget", "--accept"):
        status, _, errors = xend.xm("trust", option)
        assert status == 1 and "is missing" in errors and "Usage: xm trust" in errors
    assert posts(xend) == []

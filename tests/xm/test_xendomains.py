"""xendomains against a small xend: whose guest is whose when the host is stopped and started."""
import json
import os
import pathlib
import subprocess

import pytest

from conftest import GUEST, HOST, XM

XENDOMAINS = str(pathlib.Path(XM).parent / "xendomains")


class Stopping:
    def __init__(self, xend, directory):
        self.xend, self.record, self.auto, self.saves = xend, directory / "xendomains", directory / "auto", directory / "save"
        self.auto.mkdir()

    def run(self, word, status=0):
        environment = dict(self.xend.environment(), FERRY_STATEDIR=str(self.record.parent), XENDOMAINS_AUTO=str(self.auto),
                           XENDOMAINS_SAVE=str(self.saves), XENDOMAINS_STOP_MAXWAIT="60")
        done = subprocess.run([XENDOMAINS, word], env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    def recorded(self):
        return [domain["name"] for domain in json.loads(self.record.read_text())]

    def ends_at(self, number, answer=(200, {}), there=()):
        """A guest of this ID is pressed with this answer, and then not there any more: only those are."""
        def pressed(handler):
            self.xend.routes["GET", "/domains"] = (200, {"domains": [HOST, *there]})
            handler.json(*answer)
        self.xend.routes["POST", f"/domains/{number}/shutdown"] = pressed
        self.xend.routes["GET", f"/domains/{number}/gone"] = (200, {})


@pytest.fixture
def stopping(xend, tmp_path):
    return Stopping(xend, tmp_path)


def test_who_is_on_its_way_is_another_hosts(xend, stopping):
    away = dict(GUEST, id=2, name="Away", uuid="cc0029f5-10a1-e6d0-3c92-19b0ea021f22", away=True, doubt="It is open.")
    xend.routes["GET", "/domains"] = (200, {"domains": [HOST, GUEST, away]})
    stopping.ends_at(1, there=[away])
    assert "Away: is left as it is: It is open." in stopping.run("stop")
    assert stopping.recorded() == ["TestGuest"]


@pytest.mark.parametrize("state,kept", [("done", []), ("failed", ["TestGuest"]), ("uncertain", ["TestGuest"])])
def test_who_has_moved_meanwhile_is_forgotten(xend, stopping, state, kept):
    stopping.ends_at(1)
    xend.routes["GET", "/migrations"] = (200, {"migrations": [{"name": "Other", "id": 1, "state": "done"}, {"name": "TestGuest", "id": 7, "state": "done"},
                                                              {"name": "TestGuest", "id": 1, "state": state}]})
    stopping.run("stop")
    assert stopping.recorded() == kept


def test_who_has_rebooted_is_shut_down_again(xend, stopping):
    """Also where the answer is that of a xend that was stopped, and where it was ending, or gone, as it was asked."""
    rebooted = [dict(GUEST, id=number) for number in (2, 3)]
    stopping.ends_at(1, (409, {"error": "Domain 'TestGuest' is being ended; wait until that is done."}), rebooted[:1])
    xend.routes["GET", "/domains/1/gone"] = (200, b"")
    stopping.ends_at(2, (404, {"error": "Domain '2' does not exist."}), rebooted[1:])
    xend.routes["GET", "/domains/2/gone"] = (404, {"error": "Domain '2' does not exist."})
    stopping.ends_at(3)
    said = stopping.run("stop")
    assert "TestGuest: is down after" in said
    assert [path for verb, path, _ in xend.asked if verb == "POST"] == [f"/domains/{number}/shutdown" for number in (1, 2, 3)]


def test_a_refusal_of_another_kind_is_none(xend, stopping):
    """Then it is saved."""
    xend.routes["POST", "/domains/1/shutdown"] = (500, {"error": "Out of memory."})
    xend.job("/domains/1/save", {"event": "done", "bytes": 1})
    said = stopping.run("stop")
    assert "TestGuest: Out of memory." in said and "TestGuest: is saved after" in said


def test_guests_wait_for_a_network_that_is_late(xend, stopping):
    stopping.ends_at(1)
    stopping.run("stop")
    xend.routes["GET", "/domains"] = (200, {"domains": [HOST]})
    infos = [{"nr_cpus": 2, "network_trouble": "The line is down."}] * 2 + [{"nr_cpus": 2}]
    xend.routes["GET", "/info"] = lambda handler: handler.json(200, infos.pop(0) if len(infos) > 1 else infos[0])
    xend.routes["POST", "/domains"] = lambda handler: \
        handler.json(*((409, {"error": "The bridge is not set up yet."}) if len(infos) > 1 else (201, GUEST)))
    said = stopping.run("start")
    assert "they wait for it, up to 180 s. The line is down." in said
    assert "TestGuest: is started." in said
    assert stopping.recorded() == []


def test_who_is_still_to_be_brought_back_is_not_begun_anew(xend, stopping, tmp_path):
    checkpoint = tmp_path / "TestGuest.checkpt"
    checkpoint.write_text("its memory")
    stopping.record.write_text(json.dumps([dict(GUEST, checkpoint=str(checkpoint))]))
    for name in ("TestGuest", "Other"):
        (stopping.auto / name).write_text("kernel = '/boot/vmlinuz'\nmemory = 32\n")
    xend.routes["GET", "/domains"] = (200, {"domains": [HOST]})
    xend.job("/restore", {"event": "failed", "error": "Its disk is away."})
    xend.routes["POST", "/domains"] = (201, GUEST)
    said = stopping.run("start", 1)
    assert "TestGuest: is not begun anew" in said and "Other: is started" in said and "Its disk is away." in said
    assert [body["config"]["name"] for verb, path, body in xend.asked if (verb, path) == ("POST", "/domains")] == ["Other"]
    assert stopping.recorded() == ["TestGuest"] and checkpoint.exists()
    xend.job("/restore", {"event": "done", "domain": GUEST})
    stopping.run("start")
    assert stopping.recorded() == [] and not os.path.exists(checkpoint)

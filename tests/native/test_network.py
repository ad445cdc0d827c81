"""A guest whose clients are on the network, natively: they go on being answered while it migrates to and fro."""

import shutil

import pytest
from conftest import BUILD
from pings import Network, Pinged

PINGS, INTERVAL_S = 200, 0.01


@pytest.mark.skipif(not shutil.which("ping"), reason="ping is not installed: what a guest's clients notice was not looked at")
@pytest.mark.parametrize("clear_text", [False, True], ids=["secured", "clear"])
def test_clients_are_answered_while_it_moves(native_kvm, tmp_path_factory, clear_text):
    root = tmp_path_factory.mktemp("n")
    with Network() as network:
        pinged = Pinged(BUILD, network, str(root), clear_text=clear_text)
        try:
            for _ in range(4):
                lost, _, _ = pinged.move(PINGS, INTERVAL_S)
                assert lost < PINGS / 4
                assert pinged.there.names() == [] and pinged.here.names() == ["Answers"]
        finally:
            pinged.close()

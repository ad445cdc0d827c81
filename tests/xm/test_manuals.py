"""The manual pages name every command and option that the programs know."""
import pathlib
import re
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]
MANUALS = sorted((ROOT / "docs/man").glob("*.[0-9]"))


def text_of(page):
    return (ROOT / "docs/man" / page).read_text()


def test_xm_lists_all_commands_and_options(xend):
    page = text_of("xm.1")
    out = xend.xm("help")[1]
    for command in re.findall(r"^ ([a-z]+) ", out, re.M):
        assert re.search(rf"^\.It (.* )?Cm {command}\b", page, re.M), command
        for option in re.findall(r"--([a-z_]+)", xend.xm("help", command)[1]):
            assert f"-{option}" in page or command == "console" and option == "quiet", (command, option)


def test_every_option_of_a_guest_is_named(xend):
    page = re.sub(r"^\.(It )?Cm ", " ", text_of("xmdomain.cfg.5"), flags=re.M)
    for line in re.findall(r"^\w.*(?:\n .*)*", xend.xm("create", "--help_config")[1], re.M):
        assert re.search(rf"[ \n]{line.split()[0]}\b", page), line
        for word in "|".join(re.findall(r"\(([a-z-]+(?:\|[a-z-]+)+)\)", line)).split("|"):
            assert re.search(rf"[ \n]{word}\b", page), (line, word)


def test_every_setting_of_xend_is_named():
    page = text_of("xend-config.sxp.5")
    source = (ROOT / "src/config/xend_config.c").read_text()
    families = ("xend-tcp-xmlrpc-server", "xend-relocation-ssl", "xend-relocation-server-ssl", "vnc-tls", "vnc-x509")
    for name in re.findall(r'^\t\{"([a-z0-9-]+)", SETTING_', source, re.M):
        assert name in page or name.startswith(families), name


@pytest.mark.parametrize("page", MANUALS, ids=lambda page: page.name)
def test_pages_are_well_formed(page):
    if not shutil.which("groff"):
        pytest.skip("groff is not installed")
    done = subprocess.run(["groff", "-mdoc", "-Tutf8", "-ww", "-z", page], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == ""

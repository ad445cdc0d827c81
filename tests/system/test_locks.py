"""One disk, one guest: M12 of the chapter, over storage whose devices know no locks between hosts."""

from conftest import check_unharmed, domain, make_busy, nothing_left


def test_a_guest_is_not_started_on_two_hosts(host1, host2, running_guest):
    """The hosts know each other by one migration; then each refuses to start what the other has."""
    guest = running_guest(host1)
    make_busy(guest, 1)
    forecast = host1.run(f"xm migrate -n --live TestGuest {host2.address}").stdout
    assert forecast.startswith(f"{host2.address} would take TestGuest: about "), forecast
    host1.run("xm save -c TestGuest copy.checkpt")
    for here, there in ((host1, host2), (host2, host1)):
        here.run(f"xm migrate --live TestGuest {there.address}")
        result = here.run("xm create TestGuest", check=False)
        assert result.status == 1 and f"in use by domain 'TestGuest' (ID {domain(there, 'TestGuest')[0]} there)" \
            in result.stderr and f"runs on {there.address}" in result.stderr, result
        nothing_left(here)
        if here is host1:  # S6: it runs already, but elsewhere
            result = here.run("xm restore copy.checkpt", check=False)
            assert result.status == 1 and f"runs on {there.address}" in result.stderr, result
            nothing_left(here)
    check_unharmed(guest)

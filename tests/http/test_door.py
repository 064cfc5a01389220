"""Who may stand at the door: addresses, names, proxies, other sites' pages."""

import pytest

from zart.http.door import check_door, is_loopback
from zart.http.problems import Refused


def admit(peer="127.0.0.1", *, with_tokens=False, hosts=(), **headers):
    """The name of the problem, or None."""
    given = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    try:
        check_door(given, peer, with_tokens=with_tokens, hosts=hosts)
    except Refused as refused:
        return refused.kind.name
    return None


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:8000",
        "LOCALHOST.",
        "127.0.0.1",
        "127.8.9.1:80",
        "[::1]:8000",
        "[::ffff:127.0.0.1]",
    ],
)
@pytest.mark.parametrize("peer", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def test_without_tokens_this_machine_may_come_in(host, peer):
    """By each of its names and addresses."""
    assert admit(peer, host=host) is None


@pytest.mark.parametrize(
    "peer", ["10.0.0.7", "192.168.1.2", "8.8.8.8", "::2", "testclient", "", None, "::ffff:10.0.0.7"]
)
def test_without_tokens_no_other_machine_may(peer):
    """Nor anybody of whom it is not known where they are."""
    assert admit(peer, host="localhost") == "not-local"


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "0.0.0.0",
        "127.evil.example",
        "xlocalhost",
        "[::]",
        "2130706433.example",
    ],
)
def test_without_tokens_no_other_name_will_do(host):
    """DNS rebinding: the peer is near, since the browser is; the name is another site's."""
    assert admit(host=host) == "not-local"


@pytest.mark.parametrize("header", ["x_forwarded_for", "forwarded", "x_real_ip", "via", "x_forwarded_host"])
def test_without_tokens_nobody_comes_through_a_proxy(header):
    """It is near, and whoever stands behind it is not."""
    assert admit(host="127.0.0.1", **{header: "8.8.8.8"}) == "not-local"
    assert admit(host="127.0.0.1", with_tokens=True, **{header: "8.8.8.8"}) is None


@pytest.mark.parametrize(
    "host", ["a b", "user@localhost", "localhost/x", "localhost:port", "", "[::1", "localhost,evil.example"]
)
def test_what_is_no_host_is_refused(host):
    """With tokens too."""
    assert admit(host=host) == "malformed-request"
    assert admit(host=host, with_tokens=True) == "malformed-request"


def test_one_host_header_is_needed():
    """None says nothing, and of two a proxy and this service might believe different ones."""
    assert admit() == "malformed-request"
    with pytest.raises(Refused) as refused:
        check_door(
            [(b"host", b"localhost"), (b"Host", b"evil.example")], "127.0.0.1", with_tokens=False, hosts=()
        )
    assert refused.value.kind.name == "malformed-request"


def test_with_tokens_the_names_may_be_listed():
    """Then no other name will do; without a list any will."""
    assert admit("10.0.0.7", host="zart.example.com:443", with_tokens=True) is None
    assert (
        admit("10.0.0.7", host="zart.example.com:443", with_tokens=True, hosts=("Zart.example.com",)) is None
    )
    assert (
        admit("10.0.0.7", host="other.example.com", with_tokens=True, hosts=("zart.example.com",))
        == "wrong-host"
    )


@pytest.mark.parametrize("with_tokens", [False, True])
@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("localhost:8000", "http://localhost:8000"),
        ("localhost", "http://localhost"),
        ("localhost:80", "http://localhost"),
        ("localhost", "https://localhost:443"),
        ("127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_a_page_of_this_service_may_ask(host, origin, with_tokens):
    """Its origin is the service's own, whether or not it writes the usual port."""
    assert admit(host=host, origin=origin, with_tokens=with_tokens) is None


@pytest.mark.parametrize("with_tokens", [False, True])
@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example", "http://localhost:3000", "http://127.0.0.1:8000", "null", "", "localhost:8000",
        "http://localhost:8000.evil.example", "http://localhost:8000@evil.example", "file://localhost:8000",
        "http://localhost:8000/", "http://evil.example#localhost:8000",
    ],
)  # fmt: skip
def test_a_page_of_another_site_may_not(origin, with_tokens):
    """Nor one that does not say whose it is."""
    assert admit(host="localhost:8000", origin=origin, with_tokens=with_tokens) == "wrong-origin"


@pytest.mark.parametrize(
    ("site", "told"),
    [("cross-site", "wrong-origin"), ("same-site", "wrong-origin"), ("same-origin", None), ("none", None)],
)
def test_what_browsers_say_of_the_site_counts(site, told):
    """Also where they send no Origin, as for an image."""
    assert admit(host="localhost", sec_fetch_site=site) == told


@pytest.mark.parametrize(
    ("host", "near"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("example.com", False),
        (None, False),
        ("", False),
    ],
)
def test_what_a_loopback_address_is(host, near):
    """This machine, and no other."""
    assert is_loopback(host) is near

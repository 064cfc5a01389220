"""Ids and names: what may be one, and what the error says about what may not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zart.errors import UsageError
from zart.names import KEPT_BYTES, MAX_BYTES, check_id, check_name, shorten_name

WHAT = "the name of step charge (shop.py:3)"


@pytest.mark.parametrize(
    "name",
    [
        "a",
        "order 4711",
        "quotes ' and \"",
        "100 %",
        "a#2",
        "a/b",
        "Zürich",
        "🦀",
        "{x}",
        "~",
        " ",
        "a" * 200,
        "é" * 100,
    ],
    ids=ascii,
)
def test_any_other_sign_is_fine(name: str) -> None:
    """1 to 200 bytes of UTF-8 without control characters: quotes, slashes and emoji are signs like others."""
    assert check_name(name, WHAT) == name
    assert shorten_name(name, WHAT) == name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("", "is empty: use 1 to 200 bytes"),
        ("a" * 201, "201 bytes long"),
        ("é" * 101, "202 bytes long"),
        ("a" * 300, "300 bytes long"),
        ("a\nb", r"control character '\\n' at position 1"),
        ("\0", "control character"),
        ("\x7f", "control character"),
        ("\x85", "control character"),
        ("a\ud800", "surrogate pair at position 1"),
        (7, "is 7: it must be text"),
        (None, "is None: it must be text"),
        (b"a", "must be text"),
    ],
    ids=ascii,
)
def test_what_cannot_be_a_name_is_refused(name: object, text: str) -> None:
    """The error begins with what was named, and shows it in short."""
    with pytest.raises(UsageError, match=text) as caught:
        check_name(name, WHAT)
    assert str(caught.value).startswith(WHAT)
    assert len(str(caught.value)) < 250
    assert str(caught.value).isprintable()


def test_an_id_has_no_tilde() -> None:
    """`~` is kept for the ids of children."""
    assert check_id("order-4711") == "order-4711"
    assert check_name("a~b", WHAT) == "a~b"
    with pytest.raises(UsageError, match=r"the execution id 'a~b' contains '~'"):
        check_id("a~b")


def test_a_long_rendered_name_keeps_its_beginning_and_a_hash() -> None:
    """Two long names stay two names, the same one in every process."""
    one, other = shorten_name("a" * 1000, WHAT), shorten_name("a" * 1001, WHAT)
    assert one.startswith("a" * KEPT_BYTES + "~")
    assert one != other
    assert one == shorten_name("a" * 1000, WHAT)
    assert shorten_name("é" * 101, WHAT).startswith("é" * 80 + "~")
    assert shorten_name("a" + "é" * 101, WHAT).startswith("a" + "é" * 79 + "~")


@pytest.mark.parametrize("name", ["", "a\n" * 200, "\ud800"], ids=ascii)
def test_a_rendered_name_obeys_the_same_rules(name: str) -> None:
    """Shortening makes no name of what cannot be one."""
    with pytest.raises(UsageError, match="the name of step charge"):
        shorten_name(name, WHAT)


@given(st.text())
def test_every_text_is_a_name_or_refused(name: str) -> None:
    """Nothing else happens, and what comes out is a name."""
    try:
        rendered = shorten_name(name, WHAT)
    except UsageError:
        with pytest.raises(UsageError):
            check_name(name, WHAT)
    else:
        assert check_name(rendered, WHAT) == rendered
        assert 1 <= len(rendered.encode()) <= MAX_BYTES

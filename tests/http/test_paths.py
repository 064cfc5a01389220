"""Paths as they were sent, whatever a host has made of them."""

import re
from urllib.parse import quote, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zart.http.paths import decode_segment, encode_segment, own_path
from zart.http.problems import Refused

IDS = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=30)


def as_starlette_mounts(raw, root):
    """It says where, and leaves the rest as it is."""
    return {"path": unquote(raw), "raw_path": raw.encode("ascii"), "root_path": root}


def as_litestar_mounts(raw, root):
    """It takes the prefix off, makes one slash of several, and ends with one."""
    path = "/" + re.sub("//+", "/", unquote(raw).strip("/"))
    return {"path": path[len(root) :] + "/", "raw_path": raw.encode("ascii"), "root_path": ""}


@given(IDS, IDS)
@pytest.mark.parametrize("root", ["", "/zart", "/a/b"])
@pytest.mark.parametrize("mount", [as_starlette_mounts, as_litestar_mounts])
def test_any_two_ids_come_out_as_they_went_in(root, mount, id, event):
    """Slashes, dots, percent signs and all, mounted or not."""
    raw = f"{root}/api/v1/events/{quote(id, safe='')}/{quote(event, safe='')}"
    parts = own_path(mount(raw, root)).split("/")
    assert [decode_segment(part) for part in parts] == ["", "api", "v1", "events", id, event]


def test_without_a_raw_path_a_slash_divides():
    """A host that does not pass it on loses what it said; everything else is right."""
    assert own_path({"path": "/api/v1/executions/a b%/c", "root_path": ""}) == "/api/v1/executions/a%20b%25/c"


def test_a_raw_path_that_does_not_match_is_not_believed():
    """Some middleware has given the request another path."""
    found = own_path({"path": "/api/v1/stats", "raw_path": b"/old/path", "root_path": ""})
    assert found == "/api/v1/stats"


def test_a_query_in_the_raw_path_is_none_of_it():
    """Some clients of tests put it there."""
    assert own_path({"path": "/a", "raw_path": b"/a?b=/a", "root_path": ""}) == "/a"


def test_what_is_no_text_is_refused():
    """Half a character in percent signs."""
    with pytest.raises(Refused, match="no UTF-8"):
        decode_segment("%ff")


@given(IDS)
def test_an_id_that_is_put_into_a_path_can_be_read_again(id):
    """And it is one part of it, which no client makes another path of."""
    segment = encode_segment(id)
    assert decode_segment(segment) == id
    assert not {"/", "?", "#"} & set(segment)
    assert segment not in (".", "..")

"""Text, values and addresses that no sane caller would give."""

import math
from typing import Any

from hypothesis import strategies as st

NASTY_TEXTS = (
    "",
    " ",
    "'; DROP TABLE canary; --",
    '"; DROP TABLE canary; --',
    "$$; DROP TABLE canary; $$",
    "\\'; DROP TABLE canary; --",
    "%",
    "%s",
    "%(id)s",
    "%%",
    "$1",
    ":x",
    "{}",
    "{0}",
    "{schema}",
    "{{}}",
    "{self.__class__}",
    "a{b",
    "#",
    "a#2",
    "/",
    "1/a",
    "on_failure/",
    "~",
    "a~b",
    "--",
    "/*",
    "select",
    "public",
    "null",
    "NULL",
    "0",
    "-1",
    "\\",
    "\\N",
    '"',
    "'",
    "`",
    "\0",
    "a\0b",
    "\n",
    "a\nb",
    "\r",
    "\t",
    "\x1b[31m",
    "\x7f",
    "\x85",
    "\u2028",
    "\ud800",
    "\udcff",
    "\ud83d",
    "😀",
    "👩‍👩‍👧‍👦",
    "e\u0301",
    "é",
    "\u202etxt.exe",
    "שלום",
    "\ufeff",
    "\ufffe",
    "\U0010ffff",
    "[bold]x[/bold]",
    "[/]",
    "--help",
    "-",
    "@file",
    "x" * 200,
    "x" * 201,
    "x" * 5000,
    "é" * 100,
    "é" * 101,
    "😀" * 50,
    "😀" * 51,
)

texts = st.one_of(
    st.sampled_from(NASTY_TEXTS),
    st.text(alphabet=st.characters(), max_size=30),
    st.text(alphabet="'\"\\%${}#/~;:-\0\n é😀\ud800", max_size=12),
    st.integers(190, 210).map(lambda size: "n" * size),
)
"""Names, ids, keys: anything that is a str."""


class Subclass(str):
    __slots__ = ()


class Strange:
    """An object that answers nothing."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no equality")

    def __hash__(self) -> int:
        raise RuntimeError("no hash")


no_texts = st.sampled_from([None, 0, 1, True, 1.5, b"x", [], {}, ("a",), object(), Subclass("x"), math.nan])


def deep(levels: int, *, of: str = "list") -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value] if of == "list" else {"a": value}
    return value


def cycle() -> Any:
    value: list[Any] = [1]
    value.append({"again": value})
    return value


_leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([2**63, -(2**63) - 1, 2**64]),
    st.sampled_from([400, 4299, 5000]).map(
        lambda digits: 10**digits
    ),  # the longest have no text of their own
    st.floats(),
    st.sampled_from([-0.0, 5e-324, 1e308, math.nan, math.inf]),
    texts,
    st.sampled_from(
        [b"x", bytearray(b"x"), {1, 2}, frozenset({"a"}), (1, 2), 1j, range(3), ..., object, Exception("x")]
    ),
    st.builds(Strange),
    st.builds(Subclass, st.just("x")),
)
values = st.one_of(
    st.recursive(
        _leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4),
            st.dictionaries(
                st.one_of(texts, st.integers(), st.none(), st.floats(), st.booleans()), inner, max_size=4
            ),
        ),
        max_leaves=8,
    ),
    st.builds(deep, st.sampled_from([100, 511, 512, 513, 900, 10_000]), of=st.sampled_from(["list", "dict"])),
    st.builds(cycle),
    st.sampled_from([(1 << 20) - 2, (1 << 20) - 1, 5 << 20]).map(lambda size: "x" * size),
)
"""Payloads, results, arguments."""

json_texts = st.one_of(
    st.sampled_from(
        [
            "1e400",
            "1e-400",
            "-0.0",
            "NaN",
            "Infinity",
            "1" + "0" * 5000,
            '{"a": 1, "a": 2}',
            '"\\ud800"',
            '"\\u0000"',
            "[" * 10_000 + "]" * 10_000,
            "[" * 600 + "]" * 600,
            '{"a":' * 10_000,
            "",
            "{",
            "nul",
            "'x'",
            '"\udcff"',
            "\ufeff1",
            "1 2",
            '"' + "x" * 100_000 + '"',
        ]
    ),
    texts,
)
"""What somebody may give for JSON."""

SECRET = "s3cr3t"

_secrets = st.text(alphabet="@/:?#=&%' \\\"[],;+~*()!$^|<>{}.é", max_size=6).flatmap(
    lambda signs: st.integers(0, len(signs)).map(lambda at: signs[:at] + SECRET + signs[at:])
)
"""Passwords with every sign that has a meaning in an address, in front of or behind the part that is looked for."""
_hosts = st.sampled_from(
    [
        "127.0.0.1",
        "[::1]",
        "",
        "h" * 300,
        ".foo",
        "a..b",
        "/tmp/none",
        "%2Ftmp",
        "a,b",
        "é",
        "😀",
        "host name",
        "[::1",
        "@abstract",
    ]
)
_ports = st.sampled_from(["", ":1", ":0", ":-1", ":99999", ":port", ":1,2", ":" + "9" * 400])
_options = st.sampled_from(
    [
        "",
        "?",
        "?sslmode=require",
        "?x=y",
        "?connect_timeout=1",
        "?connect_timeout=soon",
        "?options=-cx%3Dy",
        "?&&",
        "?=",
        "?a",
        "#x",
    ]
)
_schemes = st.sampled_from(
    [
        "postgresql://",
        "postgres://",
        "postgresql+psycopg://",
        "postgresql+asyncpg://",
        "POSTGRESQL://",
        " postgresql://",
        "postgresql:/",
        "postgresql:",
        "postgres//",
        "jdbc:postgresql://",
        "mysql://",
        "",
        "://",
        "postgresql+a+b://",
    ]
)
addresses = st.one_of(
    st.builds(
        lambda scheme, user, secret, host, port, options: f"{scheme}{user}:{secret}@{host}{port}/db{options}",
        _schemes,
        st.sampled_from(["ann", "", "a%20b", "é"]),
        _secrets,
        _hosts,
        _ports,
        _options,
    ),
    st.builds(
        lambda scheme, host, name, secret: f"{scheme}{host}/db?{name}={secret}",
        st.sampled_from(["postgresql://", "postgres://"]),
        _hosts,
        st.sampled_from(
            ["password", "PASSWORD", "pass%77ord", "sslpassword", "oauth_client_secret", "scram_client_key"]
        ),
        st.sampled_from([SECRET, f"{SECRET}&x=y", f"%40{SECRET}", f"a&{SECRET}"]),
    ),
    st.builds(
        lambda before, name, equals, quote, secret, after: (
            f"{before}{name}{equals}{quote}{secret}{quote}{after}"
        ),
        st.sampled_from(["", "host=h ", "host = h ", "dbname='a b' ", "\t", "host= "]),
        st.sampled_from(["password", "PassWord", "sslpassword", "scram_client_key", "mypassword"]),
        st.sampled_from(["=", " = ", "= ", "\n=\n"]),
        st.sampled_from(["", "'"]),
        _secrets.filter(lambda secret: "=" not in secret),
        st.sampled_from(["", " host=h", " host = h", "\\", " dbname", "'"]),
    ),
)
"""Malformed and well-formed addresses, each with a password in it."""

"""Encryption at rest, without a database: keys, places, envelopes, settings."""

import base64
import copy
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import zart
from tests.support.keys import VARIABLES, key, keys, use_keys
from zart.codec import ANY, Codec
from zart.digest import ALGORITHM, ENCRYPTED, payload_digest
from zart.encryption import PLAIN, PayloadKeys, Payloads, Place, configured, envelope
from zart.encryption.keys import read_keys
from zart.errors import PayloadError, PayloadUnreadable, SerializationError, UsageError

HERE = Place("order-1", "result", "1/", "charge", 1, "step")
K1 = PayloadKeys({"k1": key("k1")})
ENCRYPTING = Payloads(K1)


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    use_keys(monkeypatch)


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
columns = st.sampled_from(
    ["input", "digest", "result", "failure", "event", "arguments", "progress", "data", "note"]
)
places = st.builds(
    Place, texts, columns, texts, texts, st.integers(0, 5), st.sampled_from(["", "step", "wait", "child"])
)


# ---------------------------------------------------------------- values


@given(value=json_values, place=places)
def test_what_is_encrypted_comes_back_as_it_was(value: Any, place: Place) -> None:
    """Byte for byte, at every place; and the envelope is JSON, so that a column of JSON takes it."""
    plain = msgspec.json.encode(value)
    stored = ENCRYPTING.encrypt(plain, place)
    assert isinstance(msgspec.json.decode(stored), dict)
    assert ENCRYPTING.decrypt(stored.decode(), place).encode() == plain


@given(value=json_values, place=places, other=places)
def test_it_is_readable_at_its_own_place_only(value: Any, place: Place, other: Place) -> None:
    """Moved to any other place it is refused."""
    stored = ENCRYPTING.encrypt(msgspec.json.encode(value), place).decode()
    if place == other:
        return
    with pytest.raises(PayloadUnreadable, match="belongs into another row"):
        ENCRYPTING.decrypt(stored, other)


@given(data=st.data(), plain=st.binary(max_size=60))
def test_a_changed_byte_is_noticed(data: st.DataObject, plain: bytes) -> None:
    """Whichever byte it is: of the key's id, the nonce, the ciphertext or the tag."""
    associated = HERE.associated()
    encrypted = bytearray(K1.encode(plain, associated))
    position = data.draw(st.integers(0, len(encrypted) - 1))
    encrypted[position] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(PayloadUnreadable):
        K1.decode(bytes(encrypted), associated)


@given(plain=st.binary(max_size=60), length=st.integers(0, 40))
def test_what_is_cut_off_is_refused(plain: bytes, length: int) -> None:
    """However much is left of it."""
    encrypted = K1.encode(plain, HERE.associated())
    with pytest.raises(PayloadUnreadable):
        K1.decode(encrypted[: min(length, len(encrypted) - 1)], HERE.associated())


def test_equal_values_do_not_look_equal() -> None:
    """Each value has a nonce of its own: neither ciphertexts nor digests show which values are equal."""
    assert len({ENCRYPTING.encrypt(b'"yes"', HERE) for _ in range(200)}) == 200
    digest = payload_digest({"approved": True})
    assert len({ENCRYPTING.encrypt_digest(digest, HERE) for _ in range(200)}) == 200


def test_a_digest_keeps_its_value_and_says_that_it_is_encrypted() -> None:
    """Another number stands in front as long as it is stored; the rules that it was taken by come back with it."""
    digest = payload_digest({"approved": True})
    stored = ENCRYPTING.encrypt_digest(digest, HERE)
    assert (digest[0], stored[0]) == (ALGORITHM, ENCRYPTED)
    assert digest[1:] not in stored
    assert ENCRYPTING.decrypt_digest(stored, HERE) == digest
    assert ENCRYPTING.decrypt_digest(digest, HERE) == digest


def test_the_input_of_a_scheduled_step_shows_which_step_comes_after_it() -> None:
    """SQL lets that one begin; nothing else of the input can be seen."""
    plain = b'{"of":"f","args":["secret"],"then":["","next",3]}'
    stored = ENCRYPTING.encrypt_input(plain, HERE)
    assert msgspec.json.decode(stored)["then"] == ["", "next", 3]
    assert b"secret" not in stored
    assert ENCRYPTING.decrypt(stored.decode(), HERE).encode() == plain
    assert "then" not in msgspec.json.decode(ENCRYPTING.encrypt_input(b'{"args":["then"]}', HERE))


# ---------------------------------------------------------------- what is no envelope


@given(value=json_values)
def test_nothing_that_a_user_stores_is_taken_for_an_envelope(value: Any) -> None:
    """Written by the library, or written out by PostgreSQL for `jsonb`: both begin with the value itself."""
    stored = Codec(ANY).encode(value, "the value").decode()
    assert not envelope.is_envelope(stored)
    assert PLAIN.decrypt(stored, HERE) == ENCRYPTING.decrypt(stored, HERE) == stored


def test_a_value_that_looks_exactly_like_an_envelope_is_a_value() -> None:
    """With encryption and without: a user may store what was once an envelope."""
    genuine = ENCRYPTING.encrypt(b'"secret"', HERE)
    lookalike = msgspec.json.decode(genuine)
    stored, decoded = Codec(ANY).store(lookalike, "the value")
    assert decoded == lookalike
    assert PLAIN.decrypt(PLAIN.encrypt(stored, HERE).decode(), HERE).encode() == stored
    assert ENCRYPTING.decrypt(stored.decode(), HERE).encode() == stored
    assert ENCRYPTING.decrypt(ENCRYPTING.encrypt(stored, HERE).decode(), HERE).encode() == stored


def test_raw_json_cannot_begin_like_an_envelope() -> None:
    """`msgspec.Raw` is written as it is, but without the space in front that makes an envelope."""
    genuine = ENCRYPTING.encrypt(b'"secret"', HERE)
    stored = Codec(msgspec.Raw).encode(msgspec.Raw(genuine), "the value")
    assert not envelope.is_envelope(stored.decode())
    assert msgspec.json.decode(stored) == msgspec.json.decode(genuine)


@pytest.mark.parametrize(
    "stored",
    [
        ' {"zart":1,"key":"k1","data":"@"}',
        ' {"zart":1,"key":"k1"}',
        ' {"zart":2,"key":"k1","data":"AAAA"}',
        ' {"zart":1,',
        ' {"zart":"one"}',
    ],
)
def test_a_damaged_envelope_is_refused(stored: str) -> None:
    """By name: it is neither a value nor readable."""
    with pytest.raises(PayloadUnreadable, match="the result of step '1/charge' of execution 'order-1'"):
        ENCRYPTING.decrypt(stored, HERE)


# ---------------------------------------------------------------- keys


def test_the_first_key_writes_and_all_of_them_read() -> None:
    """A key is rotated by putting a new one first; what the old one wrote stays readable."""
    old = Payloads(PayloadKeys({"k1": key("k1")}))
    both = Payloads(PayloadKeys({"k2": key("k2"), "k1": key("k1")}))
    written_before, written_after = old.encrypt(b"1", HERE).decode(), both.encrypt(b"2", HERE).decode()
    assert both.decrypt(written_before, HERE) == "1"
    assert both.decrypt(written_after, HERE) == "2"
    assert msgspec.json.decode(written_after)["key"] == "k2"
    with pytest.raises(PayloadUnreadable, match="'k2', which is not among the keys here \\(k1\\)") as raised:
        old.decrypt(written_after, HERE)
    assert raised.value.key == "k2"


def test_another_key_under_the_same_id_is_no_key() -> None:
    """It neither decrypts nor passes for the right one."""
    stored = ENCRYPTING.encrypt(b'"secret"', HERE).decode()
    impostor = Payloads(PayloadKeys({"k1": key("another")}))
    with pytest.raises(PayloadUnreadable, match="another key has this id here"):
        impostor.decrypt(stored, HERE)


def test_without_keys_it_says_which_one_is_missing_and_what_to_do() -> None:
    """The error is a PayloadError, and knows the key's id."""
    stored = ENCRYPTING.encrypt(b'"secret"', HERE).decode()
    with pytest.raises(PayloadError, match="with the key 'k1'.*set ZART_PAYLOAD_KEYS_FILE") as raised:
        PLAIN.decrypt(stored, HERE)
    assert isinstance(raised.value, PayloadUnreadable)
    assert raised.value.key == "k1"


def test_the_error_survives_pickle_and_copy() -> None:
    """With its attributes."""
    error = PayloadUnreadable("it is encrypted", key="k1", passing=True)
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert (str(twin), twin.key, twin.passing, twin.path) == ("it is encrypted", "k1", True, None)


def test_no_key_encrypts_too_many_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """After so many values another key is derived, with a salt that stands with each value; all stay readable."""
    monkeypatch.setattr("zart.encryption.keys.MOST_VALUES", 3)
    ring = PayloadKeys({"k1": key("k1")})
    written = [ring.encode(b"plain", b"place") for _ in range(10)]
    salts = [value[3:19] for value in written]
    assert [salts.count(salt) for salt in dict.fromkeys(salts)] == [3, 3, 3, 1]
    assert {PayloadKeys({"k1": key("k1")}).decode(value, b"place") for value in written} == {b"plain"}


def test_the_users_key_itself_encrypts_nothing() -> None:
    """Neither do two processes share a derived one."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    encrypted, other = (
        K1.encode(b"plain", b"place"),
        PayloadKeys({"k1": key("k1")}).encode(b"plain", b"place"),
    )
    with pytest.raises(InvalidTag):
        AESGCM(key("k1")).decrypt(encrypted[19:31], encrypted[31:], b"place")
    assert encrypted[3:19] != other[3:19]


def test_the_form_stays_readable() -> None:
    """What was written once by this version, byte for byte: keys, derivation, associated data and envelope."""
    data = "AmsxSdtUFb4q97OU8DAU8QM/RJEpoqNabhS3aFEAGXBSzOByDNmkmyBXjSosdsi/ARpwmAj5GvwyixeoaSk2"
    stored = f' {{"zart":1,"key":"k1","data":"{data}"}}'
    assert ENCRYPTING.decrypt(stored, HERE) == '"a value of old"'


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "holds no key"),
        ("# nothing but a comment\n", "holds no key"),
        ("k1", "line 1: give the key's id"),
        ("k1 a b", "line 1: give the key's id"),
        ("k1 !!!!", "no base64"),
        ("k1 " + base64.b64encode(b"short").decode(), "5 bytes long, but it must be 32 bytes; make one with"),
        (keys("k1") + "\n" + keys("k1"), "line 2: the key id 'k1' is there twice"),
        ("k/1 " + base64.b64encode(bytes(32)).decode(), "cannot be called so"),
    ],
)
def test_what_is_no_list_of_keys(text: str, told: str) -> None:
    """It is refused with the line and the remedy."""
    with pytest.raises(UsageError, match=told):
        read_keys(text, "the file")


@given(noise=st.sampled_from(["{key} k1", "k1 {key}x", "k1 {key} {key}", "k1:{key}", "{key}"]))
def test_no_error_shows_a_key(noise: str) -> None:
    """Not even when it stands in the wrong place."""
    secret = base64.b64encode(key("k1")).decode()
    with pytest.raises(UsageError) as raised:
        read_keys(noise.format(key=secret), "the file")
    assert secret[:20] not in str(raised.value)


def test_comments_commas_and_empty_lines_are_left_out() -> None:
    """One variable can hold the lines of a file."""
    assert read_keys(f"# ours\n\n{keys('k2')} # since May\n{keys('k1')}\n", "the file").key_id == "k2"
    assert read_keys(keys("k2", "k1").replace("\n", ","), "the variable").key_id == "k2"


# ---------------------------------------------------------------- settings


def test_nothing_set_encrypts_nothing() -> None:
    """Values pass as they are."""
    assert configured() is PLAIN
    assert configured().encrypt(b"1", HERE) == b"1"


def test_keys_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of ZART_PAYLOAD_KEYS_FILE, one key per line."""
    file = tmp_path / "keys"
    file.write_text(keys("k2", "k1"))
    file.chmod(0o640)
    monkeypatch.setenv("ZART_PAYLOAD_KEYS_FILE", str(file))
    assert msgspec.json.decode(configured().encrypt(b"1", HERE))["key"] == "k2"


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
@pytest.mark.parametrize("mode", [0o644, 0o604, 0o660, 0o602, 0o601])
def test_a_file_that_others_can_read_or_change_is_refused(
    mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what to do about it."""
    file = tmp_path / "keys"
    file.write_text(keys("k1"))
    file.chmod(mode)
    monkeypatch.setenv("ZART_PAYLOAD_KEYS_FILE", str(file))
    with pytest.raises(UsageError, match="can be read or changed by others.*chmod 600"):
        configured()


def test_a_file_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named."""
    monkeypatch.setenv("ZART_PAYLOAD_KEYS_FILE", str(tmp_path / "keys"))
    with pytest.raises(UsageError, match=r"ZART_PAYLOAD_KEYS_FILE \(.*keys\) cannot be read: No such file"):
        configured()


def test_two_ways_at_once_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody could tell which of them counts."""
    monkeypatch.setenv("ZART_PAYLOAD_KEYS", keys("k1"))
    monkeypatch.setenv("ZART_PAYLOAD_CODEC", "myapp:codec")
    with pytest.raises(UsageError, match="ZART_PAYLOAD_KEYS and ZART_PAYLOAD_CODEC are set"):
        configured()


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else of Zart needs it."""
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    with pytest.raises(UsageError, match=r"pip install 'zart-durable\[crypto\]'"):
        PayloadKeys({"k1": key("k1")})


# ---------------------------------------------------------------- a codec of one's own


class Shifting:
    """Turns bytes round: no encryption, and easy to see through."""

    def encode(self, plain: bytes, associated: bytes, /) -> bytes:
        return associated + b"\0" + plain[::-1]

    def decode(self, data: bytes, associated: bytes, /) -> bytes:
        place, _, turned = data.partition(b"\0")
        if place != associated:
            raise ValueError("another place")
        return turned[::-1]


CODEC_MODULE = """
class Shifting:
    def encode(self, plain, associated, /):
        return plain[::-1]

    def decode(self, data, associated, /):
        return data[::-1]

codec = Shifting()
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Writes a module of the user's own into the working directory; returns its name."""
    name = f"own_codec_{tmp_path.name.replace('-', '_')}"
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> str:
        (tmp_path / f"{name}.py").write_text(text)
        return name

    path = list(sys.path)
    yield write
    sys.path[:] = path
    sys.modules.pop(name, None)


def test_a_codec_of_ones_own(module: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    """ZART_PAYLOAD_CODEC names an object with encode and decode, in a module of the working directory too."""
    monkeypatch.setenv("ZART_PAYLOAD_CODEC", f"{module(CODEC_MODULE)}:codec")
    stored = configured().encrypt(b'"abc"', HERE)
    assert msgspec.json.decode(stored)["data"] == base64.b64encode(b'"cba"').decode()
    assert configured().decrypt(stored.decode(), HERE) == '"abc"'


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ("{module}", "module:attribute"),
        ("{module}:nothing", "cannot be imported"),
        ("no_such_module:codec", "cannot be imported"),
        ("{module}:Shifting", "is no codec"),
        ("{module}:__name__", "is no codec"),
    ],
)
def test_what_is_no_codec(
    named: str, told: str, module: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused before anything is stored."""
    monkeypatch.setenv("ZART_PAYLOAD_CODEC", named.format(module=module(CODEC_MODULE)))
    with pytest.raises(UsageError, match=told):
        configured()


def test_it_is_bound_to_its_place_by_what_it_is_given() -> None:
    """The associated data is the place: the same in every process, and another one for every other place."""
    payloads = Payloads(Shifting())
    stored = payloads.encrypt(b'"abc"', HERE).decode()
    assert payloads.decrypt(stored, HERE) == '"abc"'
    with pytest.raises(PayloadUnreadable, match="the codec refuses it: ValueError: another place"):
        payloads.decrypt(stored, HERE._replace(occurrence=2))
    assert HERE.associated() == b'["order-1","result","1/","charge",1,"step"]'


class Failing:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def encode(self, plain: bytes, associated: bytes, /) -> bytes:
        raise self.error

    def decode(self, data: bytes, associated: bytes, /) -> bytes:
        raise self.error


@pytest.mark.parametrize(("error", "passing"), [(ConnectionError("away"), True), (KeyError("gone"), False)])
def test_what_a_codec_raises(error: Exception, passing: bool) -> None:
    """It says what could not be encrypted or read; an OSError is a passing trouble."""
    payloads = Payloads(Failing(error))
    with pytest.raises(SerializationError, match="the result of step '1/charge'.*cannot be encrypted"):
        payloads.encrypt(b"1", HERE)
    stored = ENCRYPTING.encrypt(b"1", HERE).decode()
    with pytest.raises(PayloadUnreadable, match="the codec refuses it") as raised:
        payloads.decrypt(stored, HERE)
    assert raised.value.passing is passing


def test_a_codec_that_gives_no_bytes_or_no_text() -> None:
    """It is refused where it is called, not by the database."""

    class Odd:
        def encode(self, plain: bytes, associated: bytes, /) -> Any:
            return "text"

        def decode(self, data: bytes, associated: bytes, /) -> bytes:
            return b"\xff"

    payloads = Payloads(Odd())
    with pytest.raises(SerializationError, match="cannot be encrypted: TypeError"):
        payloads.encrypt(b"1", HERE)
    with pytest.raises(PayloadUnreadable, match="cannot be read"):
        payloads.decrypt(ENCRYPTING.encrypt(b"1", HERE).decode(), HERE)


def test_the_names_are_public() -> None:
    """The keys are a codec like any other."""
    codec: zart.PayloadCodec = zart.PayloadKeys({"k1": key("k1")})
    assert codec.decode(codec.encode(b"1", b"place"), b"place") == b"1"
    assert VARIABLES == ("ZART_PAYLOAD_KEYS_FILE", "ZART_PAYLOAD_KEYS", "ZART_PAYLOAD_CODEC")

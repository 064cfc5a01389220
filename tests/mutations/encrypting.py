"""Mutations of encryption at rest: what shows, what is taken for what, and what becomes of a missing key."""

from tests.mutations.mutation import Edit, Mutation

ENGINE = "zart/_engine/encrypting.py"
READING = "zart/_engine/decrypting.py"
ENVELOPE = "zart/encryption/envelope.py"
KEYS = "zart/encryption/keys.py"
PAYLOADS = "zart/encryption/payloads.py"
PLACES = "zart/encryption/places.py"

_TESTS = "tests/integration/test_encryption.py::"
_UNIT = "tests/unit/test_encryption.py::"

_SHOWS = f"{_TESTS}test_nothing_of_it_can_be_read_in_the_database"


def _left_plain(what: str, old: str, new: str) -> Mutation:
    return Mutation(
        name=f"{what}-in-plain",
        breaks="Nothing that the user stores can be read in the database.",
        edits=(Edit(file=ENGINE, old=old, new=new),),
        tests=(_SHOWS,),
    )


ENCRYPTING = (
    _left_plain(
        "notes",
        '(what, payloads.encrypt(note.encode(), Place(execution, "note")).decode())',
        "(what, note)",
    ),
    _left_plain(
        "progress",
        'progress=of(entry.progress, "progress"),\n        data=of(entry.data, "data"),\n        failed_attempt',
        'progress=entry.progress,\n        data=of(entry.data, "data"),\n        failed_attempt',
    ),
    _left_plain(
        "attempts",
        "failed_attempt=None if attempt is None else _encrypted_attempt(attempt, execution, payloads),",
        "failed_attempt=attempt,",
    ),
    _left_plain(
        "scheduled-input",
        'return replace(work, input=payloads.encrypt_input(work.input, Place(execution, "input", *key)))',
        "return work",
    ),
    _left_plain(
        "next-input",
        'payload=None if payload is None else payloads.encrypt(payload, Place(execution, "input")),',
        "payload=payload,",
    ),
    Mutation(
        name="event-in-plain",
        breaks="An event that Python offers is encrypted.",
        edits=(
            Edit(
                file="zart/client/offering.py",
                old='stored = payloads.encrypt(encoded, Place(execution_id, "event", name=name))',
                new="stored = encoded",
            ),
        ),
        tests=(f"{_TESTS}test_starts_and_events_in_the_callers_transaction",),
    ),
    Mutation(
        name="digest-in-plain",
        breaks="Nobody can try out what an input or an argument was.",
        edits=(
            Edit(
                file=PAYLOADS,
                old="return digest if self.codec is None else _ENCRYPTED + self._encode(digest, place)",
                new="return digest",
            ),
        ),
        tests=(
            f"{_TESTS}test_equal_inputs_and_arguments_cannot_be_recognised",
            f"{_UNIT}test_equal_values_do_not_look_equal",
        ),
    ),
    Mutation(
        name="recorded-beside-stays",
        breaks="What a step has recorded by SQL is taken away once the journal has it.",
        edits=(
            Edit(
                file="zart/_engine/own_records.py",
                old='self._transactions.later("forget_own", self._parameters())',
                new="pass",
            ),
        ),
        tests=(_SHOWS, "tests/integration/test_own_transactions.py::test_what_was_recorded_is_the_result"),
    ),
    Mutation(
        name="place-without-execution",
        breaks="A value is readable in its own row only.",
        edits=(Edit(file=PLACES, old="return _encode(self)", new="return _encode(self[1:])"),),
        tests=(
            f"{_TESTS}test_swapped_rows_are_refused",
            f"{_TESTS}test_swapped_inputs_results_and_events_are_refused",
        ),
    ),
    Mutation(
        name="child-at-its-parents-place",
        breaks="What a child came to is readable where SQL has copied it to.",
        edits=(
            Edit(
                file=READING,
                old="if child is None or stored is None:",
                new="if True or child is None or stored is None:",
            ),
        ),
        tests=(_SHOWS,),
    ),
    Mutation(
        name="envelope-without-space",
        breaks="No value of a user's is taken for an envelope.",
        edits=(
            Edit(file=ENVELOPE, old="PREFIX: Final = ' {\"zart\":'", new="PREFIX: Final = '{\"zart\":'"),
            Edit(
                file=ENVELOPE,
                old="stored is not None and stored.startswith(PREFIX)",
                new="stored is not None and stored.lstrip().startswith(PREFIX)",
            ),
            Edit(
                file=PAYLOADS,
                old="if not envelope.is_envelope(stored):",
                new="if not envelope.is_envelope(stored.replace(': ', ':')):",
            ),
        ),
        tests=(
            f"{_TESTS}test_values_that_look_like_envelopes_are_values",
            f"{_UNIT}test_a_value_that_looks_exactly_like_an_envelope_is_a_value",
        ),
    ),
    Mutation(
        name="raw-json-with-space",
        breaks="Not even raw JSON of a user's begins like an envelope.",
        edits=(Edit(file="zart/codec.py", old='if data[:1] <= b" ":', new="if False:"),),
        tests=(f"{_UNIT}test_raw_json_cannot_begin_like_an_envelope",),
    ),
    Mutation(
        name="one-key-for-all-values",
        breaks="No key encrypts more values than random nonces are safe for.",
        edits=(Edit(file=KEYS, old="if next(writing.values) > MOST_VALUES:", new="if False:"),),
        tests=(f"{_UNIT}test_no_key_encrypts_too_many_values",),
    ),
    Mutation(
        name="missing-key-fails",
        breaks="An execution whose key is missing is blocked, and none of it is lost.",
        edits=(
            Edit(
                file=READING,
                old='return endings.blocked(error, "unreadable")',
                new="from zart._engine.entries import Failed\n"
                "        from zart.failures import exception_to_json\n\n"
                "        return Failed(failure=exception_to_json(error))",
            ),
        ),
        tests=(f"{_TESTS}test_an_execution_whose_key_is_missing_is_blocked",),
    ),
    Mutation(
        name="scheduled-step-without-key-fails",
        breaks="A scheduled step whose key is missing waits for it.",
        edits=(
            Edit(
                file=READING,
                old="if claim.step is None and not error.passing:",
                new="if not error.passing:",
            ),
        ),
        tests=(f"{_TESTS}test_a_scheduled_step_whose_key_is_missing_waits_for_it",),
    ),
    Mutation(
        name="guessed-equal",
        breaks="A client without the key does not guess whether an input is equal.",
        edits=(
            Edit(
                file="zart/client/starting.py",
                old="if start.payloads.codec is not None or is_envelope(payload) or is_encrypted_digest(digest):",
                new="if start.payloads.codec is not None:",
            ),
        ),
        tests=(
            f"{_TESTS}test_what_cannot_be_compared_is_no_conflict",
            f"{_TESTS}test_a_start_that_is_sent_again_finds_what_was_pruned",
        ),
    ),
    Mutation(
        name="pruned-without-a-hash",
        breaks="A start that is sent again finds its execution, though its encrypted input was pruned.",
        edits=(
            Edit(
                file="zart/client/starting.py",
                old="return (given.digest or bytes((OF_JSON,))) + _hash_of_json(given.payload)",
                new="return given.digest or bytes((OF_JSON,)) + _hash_of_json(None)",
            ),
        ),
        tests=(f"{_TESTS}test_a_start_that_is_sent_again_finds_what_was_pruned",),
    ),
    Mutation(
        name="result-needed-to-tell-an-end",
        breaks="How an execution ended is told without a key, over HTTP too.",
        edits=(
            Edit(
                file="zart/http/executions.py",
                old="        if call.payloads:\n            raise\n",
                new="        raise\n",
            ),
        ),
        tests=("tests/http/test_unreadable.py::test_how_it_ended_is_told_without_a_key",),
    ),
    Mutation(
        name="doctor-without-keys",
        breaks="The doctor reads why an execution is blocked.",
        edits=(
            Edit(
                file="zart_cli/doctor/work.py",
                old='failure_from_json(payloads.decrypt(failure, Place(execution, "failure")))',
                new="failure_from_json(failure)",
            ),
        ),
        tests=(f"{_TESTS}test_the_doctor_says_why_an_execution_is_blocked",),
    ),
)

"""Mutations of the HTTP API: its gate, what it shows, what it takes."""

from tests.mutations.mutation import Edit, Mutation

_DOOR = "tests/http/test_door.py::"
_ERRORS = "tests/http/test_errors.py::"
_GATE = "tests/http/test_gate.py::"
_ROUTES = "tests/http/test_routes.py::"
_TOKENS = "tests/http/test_tokens.py::"
_WAITING = "tests/http/test_waiting.py::"
_WORKS = f"{_ROUTES}test_an_execution_is_started_by_name"

SERVING = (
    Mutation(
        name="gate-not-asked-for-scopes",
        breaks="A token opens the routes of its scopes, and no others.",
        edits=(
            Edit(
                file="zart/http/router.py",
                old="gate.check_scope(visit.caller, handler.opt.get(SCOPE))",
                new="pass",
            ),
        ),
        tests=(
            f"{_GATE}test_with_one_scope_exactly_its_routes_are_open",
            f"{_GATE}test_a_route_without_a_scope_is_refused_to_everybody",
        ),
        works=_WORKS,
    ),
    Mutation(
        name="forgotten-scope-opens",
        breaks="A route that names no scope is closed to everybody.",
        edits=(
            Edit(
                file="zart/http/gate.py",
                old="        if scope not in SCOPES:",
                new="        if scope is None:\n            return\n        if scope not in SCOPES:",
            ),
        ),
        tests=(f"{_GATE}test_a_route_without_a_scope_is_refused_to_everybody",),
        works=_WORKS,
    ),
    Mutation(
        name="no-token-is-welcome",
        breaks="Without a token every route is refused.",
        edits=(
            Edit(
                file="zart/http/gate.py",
                old="        if presented is None:\n",
                new="        if presented is None:\n            return _THIS_MACHINE\n        if presented is None:\n",
            ),
        ),
        tests=(
            f"{_GATE}test_without_a_token_every_route_is_refused",
            f"{_GATE}test_paths_that_do_not_exist_are_behind_the_gate_too",
        ),
        works=_WORKS,
    ),
    Mutation(
        name="peer-not-looked-at",
        breaks="Without tokens only this machine is answered.",
        edits=(Edit(file="zart/http/door.py", old="    if not is_loopback(peer):", new="    if False:"),),
        tests=(f"{_GATE}test_without_tokens_only_this_machine_is_answered",),
        works=_WORKS,
    ),
    Mutation(
        name="name-not-looked-at",
        breaks="Without tokens the service is called by a name of the loopback interface.",
        edits=(
            Edit(
                file="zart/http/door.py",
                old="    if not (is_loopback(asked.host) or asked.host in {_plain(host) for host in hosts}):",
                new="    if False:",
            ),
        ),
        tests=(f"{_GATE}test_without_tokens_only_this_machine_is_answered",),
        works=_WORKS,
    ),
    Mutation(
        name="proxies-are-near",
        breaks="Without tokens nobody comes through a proxy.",
        edits=(
            Edit(
                file="zart/http/door.py",
                old="        if name.lower() in _THROUGH_A_PROXY:",
                new="        if False:",
            ),
        ),
        tests=(f"{_DOOR}test_without_tokens_nobody_comes_through_a_proxy[via]",),
        works=_WORKS,
    ),
    Mutation(
        name="origins-not-looked-at",
        breaks="A page of another site is refused.",
        edits=(Edit(file="zart/http/door.py", old="    _check_origin(headers, asked)\n", new="    pass\n"),),
        tests=(f"{_GATE}test_another_sites_page_is_refused_with_a_token_and_without",),
        works=_WORKS,
    ),
    Mutation(
        name="tokens-compared-until-one-fits",
        breaks="Each token is compared, whichever was presented.",
        edits=(
            Edit(
                file="zart/http/tokens.py",
                old="                found = token",
                new="                return token",
            ),
        ),
        tests=(f"{_GATE}test_tokens_are_compared_in_constant_time",),
        works=_WORKS,
    ),
    Mutation(
        name="rates-not-counted",
        breaks="A caller that is too fast is told to wait.",
        edits=(
            Edit(
                file="zart/http/gate.py",
                old="        if (seconds := self._rates.take(who)) > 0:",
                new="        if (seconds := self._rates.take(who)) > 99:",
            ),
        ),
        tests=(f"{_GATE}test_a_caller_that_is_too_fast_is_told_to_wait",),
        works=_WORKS,
    ),
    Mutation(
        name="group-may-read-tokens",
        breaks="A token file that others can read is refused.",
        edits=(
            Edit(
                file="zart/http/tokens.py",
                old="    if status.st_mode & 0o077:",
                new="    if status.st_mode & 0o007:",
            ),
        ),
        tests=(f"{_TOKENS}test_a_file_that_others_can_touch_is_refused",),
        works=_WORKS,
    ),
    Mutation(
        name="tokens-never-read-again",
        breaks="A token file that changes is read again.",
        edits=(
            Edit(
                file="zart/http/tokens.py",
                old="            if _state(self._path.stat()) == self._state:",
                new="            if self._path.stat():",
            ),
        ),
        tests=(f"{_TOKENS}test_a_file_that_changes_is_read_again",),
        works=_WORKS,
    ),
    Mutation(
        name="texts-of-failures-shown",
        breaks="Without the scope payloads the texts of failures are not shown.",
        edits=(
            Edit(
                file="zart/http/views.py",
                old="        message=failure.message if payloads else msgspec.UNSET,",
                new="        message=failure.message,",
            ),
        ),
        tests=(f"{_ROUTES}test_without_the_scope_payloads_nothing_of_peoples_data_is_shown",),
        works=_WORKS,
    ),
    Mutation(
        name="notes-shown-in-full",
        breaks="Without the scope payloads a note ends at its colon.",
        edits=(
            Edit(
                file="zart/http/views.py",
                old="notes=history.notes if payloads else",
                new="notes=history.notes if True else",
            ),
        ),
        tests=(f"{_ROUTES}test_without_the_scope_payloads_nothing_of_peoples_data_is_shown",),
        works=_WORKS,
    ),
    Mutation(
        name="progress-shown",
        breaks="Without the scope payloads progress is not shown.",
        edits=(
            Edit(
                file="zart/http/views.py",
                old="    shown = payloads and record.progress",
                new="    shown = record.progress",
            ),
        ),
        tests=(f"{_ROUTES}test_without_the_scope_payloads_nothing_of_peoples_data_is_shown",),
        works=_WORKS,
    ),
    Mutation(
        name="results-shown",
        breaks="Without the scope payloads results are not shown.",
        edits=(Edit(file="zart/http/executions.py", old="    if not call.payloads:", new="    if False:"),),
        tests=(f"{_ROUTES}test_without_the_scope_payloads_nothing_of_peoples_data_is_shown",),
        works=_WORKS,
    ),
    Mutation(
        name="authors-lost",
        breaks="What a token's bearer does is signed with its name.",
        edits=(
            Edit(
                file="zart/http/router.py",
                old="            if visit.caller.name is not None:",
                new="            if False:",
            ),
        ),
        tests=(f"{_GATE}test_a_tokens_name_is_the_author_in_the_history",),
        works=_WORKS,
    ),
    Mutation(
        name="paths-taken-decoded",
        breaks="An id may hold a slash.",
        edits=(
            Edit(
                file="zart/http/paths.py",
                old="    for alike in (_exactly, _but_for_slashes):",
                new="    for alike in ():",
            ),
        ),
        tests=(f"{_ROUTES}test_ids_and_names_may_hold_any_sign[a/b]",),
        works=_WORKS,
    ),
    Mutation(
        name="dedup-not-passed-on",
        breaks="An event of an Idempotency-Key is taken once.",
        edits=(Edit(file="zart/http/executions.py", old="dedup=call.idempotency_key", new="dedup=None"),),
        tests=(f"{_ROUTES}test_a_redelivered_event_is_taken_once",),
        works=_WORKS,
    ),
    Mutation(
        name="depth-not-bounded",
        breaks="A body that is nested too deep is refused before it is read.",
        edits=(
            Edit(
                file="zart/http/bodies.py",
                old="        _check_depth(body, options.max_depth)",
                new="        pass",
            ),
        ),
        tests=(f"{_ERRORS}test_a_deep_body_is_refused_and_a_deep_payload_too",),
        works=_WORKS,
    ),
    Mutation(
        name="size-not-bounded",
        breaks="A body is read up to a bound, whatever it announces.",
        edits=(
            Edit(
                file="zart/http/bodies.py", old="        if size > options.max_body:", new="        if False:"
            ),
        ),
        tests=(f"{_WAITING}test_a_body_in_pieces_is_counted_as_it_comes",),
        works=_WORKS,
    ),
    Mutation(
        name="slow-bodies-waited-for",
        breaks="A body that takes too long is not waited for.",
        edits=(
            Edit(
                file="zart/http/bodies.py",
                old="asyncio.timeout(options.longest_body.total_seconds())",
                new="asyncio.timeout(None)",
            ),
        ),
        tests=(f"{_WAITING}test_a_body_that_takes_too_long_is_not_waited_for",),
        works=_WORKS,
    ),
    Mutation(
        name="hung-up-not-noticed",
        breaks="Whoever hangs up leaves nothing behind.",
        edits=(
            Edit(
                file="zart/http/call.py",
                old="            tasks += [awaited, gone, stopping]",
                new="            tasks += [awaited, stopping]",
            ),
        ),
        tests=(f"{_WAITING}test_whoever_hangs_up_leaves_nothing_behind",),
        works=_WORKS,
    ),
    Mutation(
        name="inner-errors-told",
        breaks="What went wrong inside is told to the log alone.",
        edits=(
            Edit(file="zart/http/problems.py", old="_TOLD_PLAINLY.get(kind) or str(error)", new="str(error)"),
        ),
        tests=(f"{_ERRORS}test_what_went_wrong_inside_is_told_to_the_log_alone",),
        works=_WORKS,
    ),
    Mutation(
        name="unknown-fields-ignored",
        breaks="What a body does not name is refused.",
        edits=(
            Edit(
                file="zart/http/requests.py",
                old="forbid_unknown_fields=True",
                new="forbid_unknown_fields=False",
            ),
        ),
        tests=(
            f'{_ERRORS}test_a_body_that_does_not_fit_is_refused_by_its_field[{{"name": "f", "nmae": "g"}}-400-nmae]',
        ),
        works=_WORKS,
    ),
)

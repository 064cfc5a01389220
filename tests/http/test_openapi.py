"""The document: what it says is what the application does."""

import asyncio
import json
import re
import time
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import msgspec
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

from tests.http.test_gate import NEEDS
from tests.support.calling import HERE, bearer, token_file
from zart.http import HttpOptions, create_app, problems
from zart.http.openapi import describe
from zart.http.table import ROUTES

DOCUMENT = describe(ROUTES, "/api/v1", "1.2.3")
REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "http.md"
TESTED_FOR = 30.0
"""Seconds for all operations together."""
LEAST = 5
"""Requests of each sort to each operation, however slow the machine is."""
ANY_BODY = "POST /api/v1/events/{execution_id}/{event}"
"""It takes whatever is JSON."""
PASSIVE = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "positive_data_acceptance",
    "missing_required_header",
    "unsupported_method",
    "allow_header_conformance",
]
"""What can be seen of one answer. Authorization is walked in test_gate.py."""


def operations():
    return {
        f"{method.upper()} {path}": operation
        for path, methods in DOCUMENT["paths"].items()
        for method, operation in methods.items()
    }


def test_it_has_every_route_below_the_prefix():
    """And no other; the probes and the metrics are no part of the API."""
    assert set(operations()) == {route for route in NEEDS if route.split(" ")[1].startswith("/api/v1/")}


def test_each_operation_says_what_it_needs_and_what_it_is():
    """The scope of the gate, a name of its own, a sentence."""
    for route, operation in operations().items():
        assert operation["security"] == [{"token": [NEEDS[route]]}]
        assert operation["summary"].endswith(".")
    names = [operation["operationId"] for operation in operations().values()]
    assert len(set(names)) == len(names)


async def test_it_is_served_as_it_is(http):
    """At openapi.json, as OpenAPI 3.1."""
    served = await http.get("/api/v1/openapi.json")
    assert served.headers["content-type"] == "application/json"
    document = served.json()
    assert document["openapi"] == "3.1.0"
    assert document["servers"] == [{"url": "/"}]
    assert document["paths"] == msgspec.to_builtins(DOCUMENT["paths"])


def test_every_reference_leads_somewhere():
    """And every schema is referred to."""
    told = msgspec.json.encode(DOCUMENT).decode()
    named = set(re.findall(r'"#/components/schemas/(\w+)"', told))
    assert named == set(DOCUMENT["components"]["schemas"])


def test_every_example_is_one():
    """The body of each example is read as its route reads it."""
    examples = [route for route in ROUTES if route.body is not None and route.body.example is not None]
    assert len(examples) == 9
    for route in examples:
        msgspec.json.decode(msgspec.json.encode(route.body.example), type=route.body.kind)


@pytest.mark.parametrize("struct", sorted(DOCUMENT["components"]["schemas"]))
def test_each_schema_describes_itself_and_its_fields(struct):
    """With examples where a name alone does not say what is meant."""
    schema = DOCUMENT["components"]["schemas"][struct]
    assert schema["description"]
    assert (
        "examples" in str(schema)
        or "$ref" in str(schema)
        or "enum" in str(schema)
        or "boolean" in str(schema)
    )


def without_security(node):
    """The document without what it says of tokens: every request brings one."""
    if isinstance(node, dict):
        return {key: without_security(value) for key, value in node.items() if key != "security"}
    return [without_security(value) for value in node] if isinstance(node, list) else node


def _reference_rows():
    return re.findall(r"^\| `(GET|POST|DELETE) ([^`]+)` \| `(\w+)` \|", REFERENCE.read_text(), re.MULTILINE)


def test_the_reference_has_the_same_routes():
    """Every method and path, with its scope, in the order of the table."""
    scopes = {"probe": "read"}
    expected = [(route.method, route.path, scopes.get(route.scope, route.scope)) for route in ROUTES]
    assert _reference_rows() == expected


def test_the_reference_has_every_option_and_its_default():
    """In their order."""
    section = REFERENCE.read_text().partition("## Settings")[2]
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", section, re.MULTILINE)
    told = {field: default.strip('"') for field, default in rows}
    assert told == {field: str(getattr(HttpOptions(), field)) for field in HttpOptions.__struct_fields__}
    assert list(told) == list(HttpOptions.__struct_fields__)


def test_the_reference_has_every_kind_of_problem():
    """With its status."""
    section = REFERENCE.read_text().partition("## Problems")[2].partition("\n## ")[0]
    told = {
        (int(status), name)
        for status, names in re.findall(r"^\| (\d{3}) \| (.*) \|$", section, re.MULTILINE)
        for name in re.findall(r"`([a-z-]+)`", names)
        if name != "field"
    }
    kinds = {(kind.status, kind.name) for kind in vars(problems).values() if isinstance(kind, problems.Kind)}
    assert told == kinds


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_schemathesis_finds_nothing(dsn, tmp_path):
    """Requests that fit the document, and requests that do not: every answer is one that it describes, and none
    is a 500."""
    schema = schemathesis.openapi.from_dict(without_security(DOCUMENT))
    # 422 is for what a schema cannot say, such as 200 bytes of UTF-8.
    schema.config.checks.positive_data_acceptance.expected_statuses = ["2xx", "404", "409", "422"]
    load_all_checks()
    checks = CHECKS.get_by_names(PASSIVE)
    until = time.monotonic() + TESTED_FOR
    fitting: Counter[str] = Counter()
    unfitting: Counter[str] = Counter()
    with asyncio.Runner() as runner, ExitStack() as closing:
        app = create_app(dsn, token_file=token_file(tmp_path))
        transport = httpx.ASGITransport(app)
        http = httpx.AsyncClient(transport=transport, base_url=HERE, headers=bearer("ann"), timeout=30)
        closing.callback(lambda: runner.run(app.aclose()))

        def ask(case):
            given = case.as_transport_kwargs(base_url=HERE)
            given.pop("cookies", None)
            if "json" in given:
                given["content"] = json.dumps(given.pop("json"))
            elif "data" in given:
                given["content"] = given.pop("data")
            given["headers"] = {**given["headers"], **bearer("ann")}
            case.validate_response(runner.run(http.send(http.build_request(**given))), checks=checks)

        for id in ("order-4711", "a/b"):
            body = {"name": "onboarding", "id": id}
            assert runner.run(http.post("/api/v1/executions", json=body)).status_code == 201
        routes = [found.ok() for found in schema.get_all_operations()]
        for number, operation in enumerate(routes):
            share = time.monotonic() + (until - time.monotonic()) / (len(routes) - number)
            _try(operation.as_strategy(generation_mode=GenerationMode.POSITIVE), ask, share, fitting)
            with suppress(Unsatisfiable):  # nothing of it can be wrong
                _try(operation.as_strategy(generation_mode=GenerationMode.NEGATIVE), ask, share, unfitting)
        runner.run(http.aclose())
    labels = {operation.label for operation in routes}
    least = {
        operation.label: LEAST if operation.path_parameters or operation.query else 1 for operation in routes
    }
    assert {label for label in labels if fitting[label] < least[label]} == set()
    bodies = {operation.label for operation in routes if list(operation.body)}
    assert {label for label in bodies if unfitting[label] < LEAST} <= {ANY_BODY}


def _try(cases, ask, until, tried):
    """Ask as many of them as there is time for, and some in any case."""
    asked = 0

    @settings(
        max_examples=60,
        database=None,
        derandomize=True,
        deadline=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases)
    def attempt(case):
        nonlocal asked
        if asked < LEAST or time.monotonic() < until:
            asked += 1
            tried[case.operation.label] += 1
            ask(case)

    attempt()

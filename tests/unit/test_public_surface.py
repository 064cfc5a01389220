"""The public surface: the package against a frozen copy of the stubs that pin it."""

import ast
import importlib
import importlib.util
import re
from pathlib import Path

import pytest

import zart
import zart.sync
from tests.support import surface

ROOT = Path(__file__).parents[2]
FROZEN = ROOT / "tests" / "typing" / "stubs" / "zart"
PINNED_AT = ROOT.parent / "shared" / "stubs" / "zart"
MODULES = ("__init__", "sync", "testing")

MISSING = {
    # Operating.
    # From outside.
}  # fmt: skip
"""What is pinned and not built so far. This list only shrinks: take a name off when it exists."""

_RETENTION = "0041-what-ended-long-ago.md"
_LOOKING = "0043-doctor-and-top.md"
_ATTRIBUTES = "0004-attributes-beyond-the-pinned-surface.md"
_REPAIRS = "0037-repairs.md"
_ENCRYPTION = "0042-encryption-at-rest.md"
ADDED = {
    # A codec of one's own, the one that Zart brings, and what says that a key is missing.
    "PayloadCodec": _ENCRYPTION,
    "PayloadKeys": _ENCRYPTION,
    "PayloadUnreadable": _ENCRYPTION,
    # What the engine and a client read of decorated functions.
    "BoundStep()": _ATTRIBUTES,
    "Durable()": _ATTRIBUTES,
    "ChildHandle()": _ATTRIBUTES,
    "Durable.call_of": _ATTRIBUTES,
    "Durable.id": _ATTRIBUTES,
    "Durable.queue": _ATTRIBUTES,
    "Durable.spec": _ATTRIBUTES,
    "Durable.time_limit": _ATTRIBUTES,
    "Durable.version": _ATTRIBUTES,
    "Event.codec": _ATTRIBUTES,
    "EventHandle()": _ATTRIBUTES,
    "ExecutionHandle()": _ATTRIBUTES,
    "Handle()": _ATTRIBUTES,
    "Saga()": _ATTRIBUTES,
    "Registry.durables": _ATTRIBUTES,
    "Registry.freeze": _ATTRIBUTES,
    "Registry.lifespan": _ATTRIBUTES,
    "Registry.steps": _ATTRIBUTES,
    "Step()": _ATTRIBUTES,
    "Step.call_of": _ATTRIBUTES,
    "StepHandle()": _ATTRIBUTES,
    "TimerHandle()": _ATTRIBUTES,
    "Step.fn": _ATTRIBUTES,
    "Step.spec": _ATTRIBUTES,
    # What leads from an execution to its children.
    "Record.child_id": _ATTRIBUTES,
    # The runs of an execution.
    "Client.runs": _REPAIRS,
    "Run": _REPAIRS,
    # What a worker reads of a client, and the command line sets at a worker.
    "Client.address": _ATTRIBUTES,
    "Client.schema": _ATTRIBUTES,
    # Retention, and who works.
    "Client.prune": _RETENTION,
    "ExecutionPruned": _RETENTION,
    "Pruned": _RETENTION,
    "WorkerConfig(keep_ids)": _RETENTION,
    "WorkerConfig(retention)": _RETENTION,
    "WorkerConfig.keep_ids": _RETENTION,
    "WorkerConfig.retention": _RETENTION,
    "Client.workers": _LOOKING,
    "WorkerStatus": _LOOKING,
    # How one client serves many authors.
    "Client.as_author": _ATTRIBUTES,
    "Client.is_open": _ATTRIBUTES,
    "sync.ExecutionHandle()": _ATTRIBUTES,
    "Worker.exit_when_wedged": _ATTRIBUTES,
    # The structured side of errors.
    "EventTimeout(*args)": _ATTRIBUTES,
    "EventTimeout(event)": _ATTRIBUTES,
    "EventTimeout(limit)": _ATTRIBUTES,
    "EventTimeout.event": _ATTRIBUTES,
    "EventTimeout.limit": _ATTRIBUTES,
    "ExecutionBlocked(execution_id)": _ATTRIBUTES,
    "ExecutionBlocked(failure)": _ATTRIBUTES,
    "ExecutionBlocked.execution_id": _ATTRIBUTES,
    "ExecutionCancelled(*args)": _ATTRIBUTES,
    "ExecutionCancelled(execution_id)": _ATTRIBUTES,
    "ExecutionCancelled(reason)": _ATTRIBUTES,
    "ExecutionCancelled.execution_id": _ATTRIBUTES,
    "ExecutionCancelled.reason": _ATTRIBUTES,
    "ExecutionConflict.execution_id": _ATTRIBUTES,
    "ExecutionFailed(execution_id)": _ATTRIBUTES,
    "ExecutionFailed(failure)": _ATTRIBUTES,
    "ExecutionFailed.execution_id": _ATTRIBUTES,
    "ExecutionFinished.execution_id": _ATTRIBUTES,
    "ExecutionNotFound.execution_id": _ATTRIBUTES,
    "NonDeterminismError(*args)": _ATTRIBUTES,
    "NonDeterminismError(recorded)": _ATTRIBUTES,
    "NonDeterminismError(requested)": _ATTRIBUTES,
    "NonDeterminismError.recorded": _ATTRIBUTES,
    "NonDeterminismError.requested": _ATTRIBUTES,
    "PayloadError(*args)": _ATTRIBUTES,
    "PayloadError(path)": _ATTRIBUTES,
    "PayloadError.path": _ATTRIBUTES,
    "ResultTimeout.execution_id": _ATTRIBUTES,
    "RetryAfter.delay": _ATTRIBUTES,
    "SerializationError(*args)": _ATTRIBUTES,
    "SerializationError(what)": _ATTRIBUTES,
    "SerializationError.what": _ATTRIBUTES,
    "StepFailed(failure)": _ATTRIBUTES,
    "StepInterrupted(*args)": _ATTRIBUTES,
    "StepInterrupted(step)": _ATTRIBUTES,
    "StepInterrupted.step": _ATTRIBUTES,
    "StepTimeout(*args)": _ATTRIBUTES,
    "StepTimeout(limit)": _ATTRIBUTES,
    "StepTimeout(step)": _ATTRIBUTES,
    "StepTimeout.limit": _ATTRIBUTES,
    "StepTimeout.step": _ATTRIBUTES,
    # What people look at.
    "Record.progress": _ATTRIBUTES,
    # A policy and a worker's settings can be read.
    "Retry.allows": _ATTRIBUTES,
    "Retry.delay": _ATTRIBUTES,
    "Retry.delay_before": _ATTRIBUTES,
    "Retry.factor": _ATTRIBUTES,
    "Retry.give_up_on": _ATTRIBUTES,
    "Retry.jitter": _ATTRIBUTES,
    "Retry.kind": _ATTRIBUTES,
    "Retry.max": _ATTRIBUTES,
    "Retry.retries": _ATTRIBUTES,
    "Retry.retry_on": _ATTRIBUTES,
    "WorkerConfig.heartbeat_interval": _ATTRIBUTES,
    "WorkerConfig.max_concurrent_tasks": _ATTRIBUTES,
    "WorkerConfig.max_inflight_steps": _ATTRIBUTES,
    "WorkerConfig.max_parked_bodies": _ATTRIBUTES,
    "WorkerConfig.max_recoveries": _ATTRIBUTES,
    "WorkerConfig.max_tasks_per_poll": _ATTRIBUTES,
    "WorkerConfig.max_threads": _ATTRIBUTES,
    "WorkerConfig.orphan_timeout": _ATTRIBUTES,
    "WorkerConfig.poll_interval": _ATTRIBUTES,
    "WorkerConfig.queues": _ATTRIBUTES,
    "WorkerConfig.shutdown_timeout": _ATTRIBUTES,
    "WorkerConfig.wedge_timeout": _ATTRIBUTES,
}
"""What is public beyond the pin, and the record in docs/decisions/ that says why."""


@pytest.fixture(scope="module")
def pinned() -> surface.Surface:
    found: surface.Surface = {}
    for module in MODULES:
        found |= _under(module, surface.of_stub(FROZEN / f"{module}.pyi"))
    return found


@pytest.fixture(scope="module")
def offered() -> surface.Surface:
    found: surface.Surface = _under("__init__", surface.of_module(zart))
    for module in MODULES[1:]:
        if importlib.util.find_spec(f"zart.{module}") is not None:
            found |= _under(module, surface.of_module(importlib.import_module(f"zart.{module}")))
    return found


def _under(module: str, found: surface.Surface) -> surface.Surface:
    if module == "__init__":
        return found
    return {module: "module", **{f"{module}.{name}": described for name, described in found.items()}}


def _covered(name: str, names: set[str]) -> bool:
    """Whether the list has the name itself or what it is a part of.

    "Client" stands for "Client.start#1(id)", and "Step()" for every parameter of that class's constructor.
    """
    parts = [name, *(name[: match.start()] for match in re.finditer(r"[.#(]", name))]
    constructor = f"{name.partition('(')[0]}()"
    return not names.isdisjoint([*parts, constructor])


def test_what_the_package_and_the_pin_both_have_agrees(pinned, offered):
    """Names, kinds, parameters and defaults are as they are pinned."""
    differing = {
        name: f"pinned: {pinned[name]}; found: {offered[name]}"
        for name in pinned.keys() & offered.keys()
        if not surface.same(pinned[name], offered[name])
    }
    assert differing == {}


def test_nothing_else_is_missing_than_what_is_listed(pinned, offered):
    """A pinned name that the package lacks stands on the list."""
    assert [name for name in pinned if name not in offered and not _covered(name, MISSING)] == []


def test_the_list_of_what_is_missing_only_shrinks(pinned, offered):
    """A listed name that exists, or that was never pinned, is taken off the list."""
    assert sorted(MISSING & offered.keys()) == []
    assert sorted(MISSING - pinned.keys()) == []


def test_every_addition_has_a_decision_record(pinned, offered):
    """What is public beyond the pin is listed with the record that says why."""
    added = [name for name in offered if name not in pinned and not _covered(name, set(ADDED))]
    assert added == []
    assert sorted(name for name in ADDED if name.removesuffix("()") not in offered) == []
    decisions = ROOT / "docs" / "decisions"
    assert sorted({record for record in ADDED.values() if not (decisions / record).is_file()}) == []


def test_the_public_names_are_sorted_and_exist():
    """`__all__` is sorted, without doubles, and every name in it can be imported."""
    for module in (zart, zart.sync):
        assert module.__all__ == sorted(set(module.__all__))
        assert [name for name in module.__all__ if not hasattr(module, name)] == []


def test_the_types_of_everything_public_are_proved():
    """Each public name is used in tests/typing/api.py, which mypy and pyright check."""
    tree = ast.parse((ROOT / "tests" / "typing" / "api.py").read_text())
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    used |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert sorted({*zart.__all__, *zart.sync.__all__} - used) == []


@pytest.mark.parametrize("name", sorted(path.name for path in FROZEN.iterdir()))
def test_the_frozen_copy_is_the_pin(name):
    """Byte for byte, where what it was copied from is at hand."""
    if not PINNED_AT.is_dir():
        pytest.skip("the original is not at hand")
    assert (FROZEN / name).read_bytes() == (PINNED_AT / name).read_bytes()


def test_the_docstring_of_the_package_is_a_program_that_works():
    """The onboarding example runs as it stands there, and its registry can be frozen."""
    text = zart.__doc__ or ""
    example = "\n".join(line[4:] for line in text.splitlines() if line.startswith("    ") or not line)
    names: dict[str, object] = {"__name__": "onboarding_example"}
    exec(compile(example, "example in zart.__doc__", "exec"), names)
    registry = names["registry"]
    assert isinstance(registry, zart.Registry)
    registry.freeze()
    assert set(registry.durables) == {("onboarding", None)}
    assert set(registry.steps) == {"send-email", "setup-billing"}

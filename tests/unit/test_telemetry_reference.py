"""docs/reference/telemetry.md is what the code says: events and their fields, metrics, attributes, fields of logs."""

import re

import msgspec
import pytest

from tests.support.documents import ROOT
from zart import telemetry
from zart.telemetry import events, metrics, traces
from zart.telemetry.labels import MOST_VALUES
from zart.telemetry.logs import FIELDS

TEXT = (ROOT / "docs/reference/telemetry.md").read_text()


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table behind a line that begins so."""
    _, _, rest = TEXT.partition(f"\n{heading}")
    assert rest, heading
    table = re.search(r"(?:^\|.*\n)+", rest, re.MULTILINE)
    assert table is not None
    return [[cell.strip() for cell in line.strip("|\n ").split("|")] for line in table[0].splitlines()[2:]]


def words(cell: str) -> list[str]:
    return re.findall(r"`([\w.]+)`", cell)


def fields(struct: type[msgspec.Struct]) -> list[str]:
    return [field.name for field in msgspec.structs.fields(struct)]


def test_every_event_is_there_with_its_fields() -> None:
    """In the order of the code."""
    told = {words(name)[0]: words(with_) for name, _, with_ in rows("## Events")}
    classes = [
        member
        for member in vars(events).values()
        if isinstance(member, type) and issubclass(member, events.TelemetryEvent)
    ]
    bases = {events.TelemetryEvent, events.SegmentOver}
    assert told == {cls.__name__: fields(cls) for cls in classes if cls not in bases}
    assert list(told) == [cls.__name__ for cls in classes if cls not in bases]


def test_so_is_what_they_refer_to() -> None:
    """Field by field."""
    told = {words(name)[0]: words(listed) for name, listed in rows("they refer to:")}
    parts = (events.Segment, events.StepAttempt, events.Raised)
    assert told == {part.__name__: fields(part) for part in parts}


def test_every_event_is_public() -> None:
    """Whoever writes a hook finds all classes in `zart.telemetry`."""
    named = {words(name)[0] for name, *_ in rows("## Events")} | {"TelemetryEvent", "SegmentOver"}
    assert named | {"Segment", "StepAttempt", "Raised"} <= set(telemetry.__all__)
    assert telemetry.__all__ == sorted(telemetry.__all__)
    assert all(hasattr(telemetry, name) for name in telemetry.__all__)


def test_every_field_of_a_log_is_there() -> None:
    """In order."""
    assert [words(row[0])[0] for row in rows("## Fields of logs")] == list(FIELDS)


def test_every_metric_is_there_with_its_labels() -> None:
    """And with what it says of itself to whoever scrapes it."""
    told = {words(name)[0]: (tuple(words(labels)), text) for name, labels, text in rows("## Metrics")}
    known = {f"{name}_total": (labels, text) for name, (text, labels) in metrics.COUNTERS.items()}
    known |= {name: (labels, text) for name, (text, labels, _) in metrics.HISTOGRAMS.items()}
    known |= {name: ((), text) for name, (text, _) in metrics.GAUGES.items()}
    known[f"{metrics.HOOK_TROUBLE}_total"] = (metrics.TROUBLE_LABELS, metrics.TROUBLE_SAYS)
    assert told == known
    assert f"at most {MOST_VALUES} values" in " ".join(TEXT.split())


@pytest.mark.parametrize(
    ("heading", "attributes"),
    [
        ("Attributes of a segment:", traces.SEGMENT_ATTRIBUTES),
        ("Attributes of an attempt of a step:", traces.STEP_ATTRIBUTES),
    ],
)
def test_every_attribute_is_there(heading: str, attributes: dict[str, str]) -> None:
    """With what it says; tests/integration/test_traces.py compares the same with spans."""
    assert {words(name)[0]: text for name, text in rows(heading)} == attributes

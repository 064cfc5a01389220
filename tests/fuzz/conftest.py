"""What the tests of bad input share: a worker and a client that live through all of it."""

from collections.abc import Iterator

import pytest

from tests.fuzz.stage import Stage
from tests.support.databases import Databases


@pytest.fixture(scope="module")
def stage(databases: Databases, template: str) -> Iterator[Stage]:
    """A worker and a client on a database of their own, in a thread beside the tests."""
    with databases.database(template) as name, Stage(databases.address(name)) as running:
        yield running

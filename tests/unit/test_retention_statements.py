"""Pruning and its dry run say the same: what is counted is what would go."""

from zart._postgres.queries import load

STATEMENTS = {name: " ".join(text.decode().split()) for name, text in load("retention", "public").items()}


def part(name: str, begin: str, end: str) -> str:
    _, found, rest = STATEMENTS[name].partition(begin)
    assert found
    return rest.partition(end)[0]


def test_the_same_executions_are_wanted() -> None:
    """By the same conditions, in the same order."""
    for begin, end in (
        ("e.status = ANY", "AS wanted"),
        ("WHERE e.created_at", "LIMIT"),
        ("FROM (SELECT e.run_id AS id", "IS NULL"),
        ('SELECT true FROM "public".zart_steps s', "IS NULL"),
    ):
        assert part("prune", begin, end) == part("count_prunable", begin, end)


def test_what_is_locked_is_looked_at_again() -> None:
    """The conditions on the execution's own row stand beside the lock, where its newest version is compared."""
    wanted = part("prune", "SELECT e.id, e.created_at, e.run_id,", "AS wanted").strip()
    assert wanted in part("prune", "locked AS MATERIALIZED", "FOR UPDATE OF e SKIP LOCKED")

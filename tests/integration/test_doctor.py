"""`zart doctor` while something goes on."""

import datetime as dt

import psycopg
import pytest

from tests.support.running import query, until
from zart_cli.doctor import examination
from zart_cli.doctor.examination import examine

MINUTES = dt.timedelta(minutes=5)


@pytest.mark.not_in("pgbouncer", reason="the pooler's connections look like others")
async def test_a_look_that_is_cut_off_is_a_finding(
    dsn: str, direct_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table that somebody has locked holds up one check for a while; the others are taken."""
    monkeypatch.setattr(examination, "_LONGEST_LOOK", "200ms")
    with psycopg.connect(direct_dsn) as hand:
        hand.execute("LOCK TABLE zart_step_attempts IN ACCESS EXCLUSIVE MODE")
        found = {
            finding.check: finding
            for finding in await examine(dsn, "public", old_after=MINUTES, registry=None)
        }
    assert found["retrying"].level == "warning"
    assert found["retrying"].found.startswith("the look was cut off")
    assert found["blocked"].level == "ok"


@pytest.mark.not_in("pgbouncer", reason="the pooler opens its connections anew")
async def test_a_connection_that_is_lost_ends_it_with_a_word(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was found so far is told, and why there is no more."""
    take = examination._take

    async def take_until_blocked(connection: object, check: examination.Check, patient: examination.Patient):
        if check.name == "blocked":
            await query(
                dsn,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name = 'zart doctor'",
            )
            await until(
                lambda: query(
                    dsn,
                    "SELECT 1 FROM pg_stat_activity WHERE datname = current_database()"
                    " AND application_name = 'zart doctor' HAVING count(*) = 0",
                )
            )
        return await take(connection, check, patient)  # type: ignore[arg-type]

    monkeypatch.setattr(examination, "_take", take_until_blocked)
    found = await examine(dsn, "public", old_after=MINUTES, registry=None)
    assert found[-1].check == "blocked"
    assert found[-1].level in ("error", "warning")
    assert "terminat" in found[-1].found or "lost" in found[-1].found

"""Mutations of what keeps statements quick when there are millions of rows."""

from tests.mutations.mutation import Edit, Mutation

_PLANS = "tests/integration/test_plans.py::"
_AT_A_MILLION = (f"{_PLANS}test_statements_use_their_indexes_at_a_million_rows",)
_PLANNED = f"{_PLANS}test_every_statement_can_be_planned"

SCALE = (
    Mutation(
        name="look-in-no-order",
        breaks="An idle worker's look costs the same whatever others have ready.",
        edits=(
            Edit(
                file="zart/_postgres/sql/claim.sql",
                under="peek",
                old="t.recoveries > 1 AND t.state = 'ready'\n"
                "            ORDER BY t.recoveries, t.priority, t.id LIMIT 1",
                new="t.recoveries > 1 AND t.state = 'ready' LIMIT 1",
            ),
            Edit(
                file="zart/_postgres/sql/claim.sql",
                under="peek",
                old="t.recoveries <= 1 AND t.state = 'ready'\n"
                "            ORDER BY t.recoveries, t.priority, t.id LIMIT 1",
                new="t.recoveries <= 1 AND t.state = 'ready' LIMIT 1",
            ),
        ),
        tests=_AT_A_MILLION,
        works=_PLANNED,
    ),
    Mutation(
        name="view-apart",
        breaks="A page of executions is read from its index.",
        edits=(
            Edit(
                file="migrations/0011_pause_executions.sql",
                old="w.expires_at > statement_timestamp()",
                new="w.expires_at > clock_timestamp()",
            ),
        ),
        tests=_AT_A_MILLION,
        works=_PLANNED,
    ),
    Mutation(
        name="claim-compiled",
        breaks="A claim is not compiled each time, however large the backlog.",
        edits=(
            Edit(
                file="zart/_postgres/sql/claim.sql",
                under="claim",
                old="ORDER BY s.priority, s.id LIMIT 10000",
                new="ORDER BY s.priority, s.id",
            ),
        ),
        tests=_AT_A_MILLION,
        works=_PLANNED,
    ),
    Mutation(
        name="pages-prepared",
        breaks="A page is planned for the filters that it has.",
        edits=(
            Edit(
                file="zart/client/database.py",
                old='frozenset(("page", "live_page"))',
                new="frozenset(())",
            ),
        ),
        tests=(f"{_PLANS}test_a_page_is_planned_for_its_filters",),
    ),
    Mutation(
        name="results-by-list",
        breaks="What a client asks for results is not read from the whole of a new database's tables.",
        edits=(
            Edit(
                file="zart/_postgres/sql/client.sql",
                under="ended",
                old="CROSS JOIN LATERAL (SELECT * FROM {schema}.zart_executions x WHERE x.id = wanted.id OFFSET 0) e",
                new="JOIN {schema}.zart_executions e ON e.id = wanted.id",
            ),
        ),
        tests=(f"{_PLANS}test_a_plan_that_is_made_in_a_new_database_may_be_kept",),
    ),
)

import psycopg
from zart.migrate import migrate, check, sql_text
async def test_dsn(dsn):
    with psycopg.connect(dsn) as c:
        print(c.execute("select name from zart_migrations").fetchall())
    assert (await check(dsn)).is_current
async def test_quote(empty_dsn):
    s = 'we"ird {x} %s sch'
    await migrate(empty_dsn, schema=s)
    await migrate(empty_dsn, schema=s)
    assert (await check(empty_dsn, schema=s)).is_current
    await migrate(empty_dsn)
async def test_script(empty_dsn):
    s = 'we"ird {x} %s sch'
    with psycopg.connect(empty_dsn, autocommit=True) as c:
        c.execute(sql_text(s))
    assert (await check(empty_dsn, schema=s)).is_current

"""A bank: transfers as transactional steps, while workers are killed and the database crashes.

`python -m tests.bank` (or `make bank`) moves money five thousand times between twenty accounts, on several real worker
processes of which one is killed every other moment, and a PostgreSQL that crashes in the middle. In the end no money is
lost or made, and each transfer was applied exactly once, however often its function ran.
"""

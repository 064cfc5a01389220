"""Mutations: each breaks one sentence that Zart promises, and names the tests that must notice.

A suite that passes proves nothing unless it fails when the promise is broken. `python -m tests.mutations` breaks each
of them once, in a private copy of the tree, and runs the tests that it names: they must fail. One that survives is a
missing test. `test_mutations.py` in `tests/unit` sees to it that no mutation rots while the code moves on.
"""

"""The corpus: every workflow that is run under faults.

    WORKFLOWS["sequence"]      a Workflow: how to start it, what happens from outside, what must come of it
    registry                   all their functions, for `zart worker --app tests.crashes.corpus:registry`

To add one, write a durable function whose steps `note` what they do, and a `Workflow` that says what must come of it,
in the module it belongs to. It is found by its function's name, and everything that runs the corpus takes it up.
"""

import zart
from tests.crashes import (
    branches,
    composition,
    endings,
    held_repairs,
    inside,
    pausing,
    repairing,
    straight,
    undoing,
    waiting,
)
from tests.crashes.workflow import Workflow

WORKFLOWS: dict[str, Workflow] = {
    workflow.name: workflow
    for module in (
        straight,
        branches,
        waiting,
        endings,
        composition,
        undoing,
        inside,
        pausing,
        repairing,
        held_repairs,
    )
    for workflow in module.WORKFLOWS
}

registry = zart.Registry(*(workflow.durable for workflow in WORKFLOWS.values()), *composition.OTHERS)

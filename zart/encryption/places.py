"""Where a stored value stands. The place goes into the encryption as associated data: elsewhere it does not decrypt.

A place is named by what is known at both ends of every way that a value takes, and by nothing that changes on the way.
SQL copies some values without decrypting them, and they must be readable where they arrive:

- What a child comes to is copied from its own row into its parent's journal. Its place is the child's, which the
  parent's record names.
- `continue_as_new`, `restart` and `rerun` give an execution another run, which may take over records and the input. So
  no place names a run.

A call is named by its key in the journal, as a replay names it.
"""

from typing import Literal, NamedTuple

import msgspec

Column = Literal["input", "digest", "result", "failure", "event", "arguments", "progress", "data", "note"]

_encode = msgspec.json.Encoder().encode
_TOLD = {
    "arguments": "the first of the arguments",
    "data": "the data set",
    "digest": "the digest of the input",
    "input": "the input",
    "note": "a note in the history",
    "progress": "the progress",
}


class Place(NamedTuple):
    """The place of one value: of the execution itself, of an event (its name), or of one call of it."""

    execution_id: str
    column: Column
    path: str = ""
    name: str = ""
    occurrence: int = 0
    kind: str = ""

    def associated(self) -> bytes:
        """The associated data of the encryption: a JSON array of its parts, the same in every process."""
        return _encode(self)

    def __str__(self) -> str:
        """How errors call what stands there: "the result of step 'charge' of execution 'order-1'"."""
        of = f"execution {self.execution_id!r}"
        if self.column == "event":
            return f"the payload of event {self.name!r} for {of}"
        told = _TOLD.get(self.column, f"the {self.column}")
        if not self.kind:
            return f"{told} of {of}"
        repeated = f"#{self.occurrence}" if self.occurrence > 1 else ""
        return f"{told} of {self.kind} '{self.path}{self.name}{repeated}' of {of}"

"""Labels that cannot grow without end: a metric keeps a series for each value of a label that it has ever seen."""

from typing import Final

MOST_VALUES: Final = 100
"""Values of one label of one metric; any other one is called `OTHER`."""
OTHER: Final = "other"


class Labels:
    """The labels of one metric: the first `most` values of each are taken as they are, all later ones are `OTHER`."""

    def __init__(self, *names: str, most: int = MOST_VALUES) -> None:
        self.names: tuple[str, ...] = names
        self._most = most
        self._known: tuple[set[str], ...] = tuple(set() for _ in names)

    def bounded(self, *values: str) -> tuple[str, ...]:
        """The values to use for these, in the order of the names."""
        return tuple(map(self._bounded, self._known, values))

    def _bounded(self, known: set[str], value: str) -> str:
        if value in known:
            return value
        if len(known) >= self._most:
            return OTHER
        known.add(value)
        return value

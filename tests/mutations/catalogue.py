"""All mutations, and those that nobody can notice."""

from tests.mutations.bodies import BODIES
from tests.mutations.clients import CLIENTS
from tests.mutations.composition import COMPOSITION
from tests.mutations.encrypting import ENCRYPTING
from tests.mutations.forgetting import FORGETTING
from tests.mutations.inside import INSIDE
from tests.mutations.journal import JOURNAL_MUTATIONS
from tests.mutations.leases import LEASES
from tests.mutations.pausing import PAUSING
from tests.mutations.repairing import REPAIRING
from tests.mutations.retention import RETENTION
from tests.mutations.scale import SCALE
from tests.mutations.serving import SERVING
from tests.mutations.telemetry import TELLING
from tests.mutations.undoing import UNDOING

MUTATIONS = (
    *LEASES,
    *FORGETTING,
    *JOURNAL_MUTATIONS,
    *BODIES,
    *CLIENTS,
    *COMPOSITION,
    *UNDOING,
    *INSIDE,
    *SCALE,
    *ENCRYPTING,
    *TELLING,
    *RETENTION,
    *SERVING,
    *PAUSING,
    *REPAIRING,
)

SURVIVORS: dict[str, str] = {}
"""By name: why no test can tell them from the original."""

"""What becomes of an order: `zart worker --app examples.django_shop.durables:registry` runs it.

`DJANGO_SETTINGS_MODULE` is set for the worker, too.
"""

import django

django.setup()

from django.db import connection  # noqa: E402

import zart  # noqa: E402
from examples import world  # noqa: E402
from examples.django_shop.models import Order  # noqa: E402
from zart import durable, step  # noqa: E402


@step("pack")
async def pack(number: int) -> str:
    await world.call("depot", f"pack order {number}")
    return f"parcel {number}"


@step("note-parcel")
def note_parcel(number: int, parcel: str) -> None:
    """A plain `def` runs in a thread, where Django's models may be used."""
    Order.objects.filter(number=number).update(parcel=parcel)
    connection.close()  # each thread has one of its own


@durable("fulfil")
async def fulfil(number: int) -> str:
    parcel = await pack(number)
    await note_parcel(number, parcel)
    return f"{parcel} is on its way"


registry = zart.Registry(fulfil)

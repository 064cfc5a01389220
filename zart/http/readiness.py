"""Whether the service can be used, for /readyz."""

import asyncio
import logging
from typing import Final

import psycopg

from zart import SchemaError, ZartError
from zart.http.service import Service
from zart.migrate import check

_log = logging.getLogger("zart.http")

_PATIENCE: Final = 3.0
"""Seconds that the database has for its answer."""


async def trouble(service: Service) -> str | None:
    """Why the service cannot be used, in words that tell nobody where the database is; None when it can be."""
    try:
        async with asyncio.timeout(_PATIENCE):
            status = await check(service.address, schema=service.schema)
            await service.client()
    except SchemaError as error:
        return _told("the database's tables cannot be read", error)
    except (ZartError, psycopg.Error, OSError) as error:  # a TimeoutError is an OSError
        return _told("the database does not answer", error)
    if status.unknown:
        return "the database is newer than this service"
    if status.pending or status.drifted:
        return "the database's tables are of another version: `zart migrate` brings them up to date"
    return None


def _told(reason: str, error: Exception) -> str:
    _log.warning("not ready: %s (%s: %s)", reason, type(error).__name__, error)
    return reason

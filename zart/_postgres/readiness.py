"""Whether a socket has more to say.

An event loop that watches a socket calls back when there is something to read, and again while there is. uvloop does
not always: when the other end has reset the connection, it calls back once and then stops watching, whatever is left
to read before the end. So whoever is called back reads until there is nothing more.
"""

import select


def has_more(socket: int) -> bool:
    """Whether there is something to read now: data, an error or the end."""
    if not hasattr(select, "poll"):
        return bool(select.select([socket], [], [], 0)[0])
    poll = select.poll()
    poll.register(socket, select.POLLIN)
    return bool(poll.poll(0))

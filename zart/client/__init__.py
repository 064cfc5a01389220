"""What a program calls from outside of any execution: a Client, and the starts and events of its own
transactions.
"""

from zart.client.client import Client
from zart.client.handle import ExecutionHandle
from zart.client.transactions import offer_event, start

__all__ = ["Client", "ExecutionHandle", "offer_event", "start"]

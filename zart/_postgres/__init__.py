"""Connections, queries and the embedded server."""

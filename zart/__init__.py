"""Durable functions on the Postgres you already have."""

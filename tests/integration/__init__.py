"""Parts of zart against a real PostgreSQL."""

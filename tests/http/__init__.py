"""Tests of the HTTP API, most of them in the process of the test: httpx calls the application, which uses a real
database."""

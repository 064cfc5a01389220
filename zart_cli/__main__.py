"""`python -m zart_cli`, for where the command itself is not on the path."""

from zart_cli.main import cli

cli(prog_name="zart")

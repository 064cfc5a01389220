"""The command `zart`."""

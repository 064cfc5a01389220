"""The name the package index knows this library by; `zart` belongs to another project there."""

from typing import Final

DISTRIBUTION: Final = "zart-durable"


def install_hint(extra: str) -> str:
    """The command that adds what `extra` brings, ready to paste: `pip install 'zart-durable[embedded]'`."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"

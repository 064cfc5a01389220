"""What an app says of itself: nothing of this asks the database."""

import zart
from zart.client.reading import named
from zart_cli.doctor.finding import Finding, info, ok

_SHOWN = 20


def judge_app(registry: zart.Registry) -> list[Finding]:
    """What is registered, and which steps are tried once."""
    registry.freeze()
    functions = sorted(named(name, version) for name, version in registry.durables)
    found = [ok("app", f"registers {', '.join(functions) or 'no function'} and {len(registry.steps)} steps")]
    once = sorted(name for name, step in registry.steps.items() if not step.spec.retry.retries)
    if once:
        shown = ", ".join(once[:_SHOWN]) + (f" and {len(once) - _SHOWN} more" if len(once) > _SHOWN else "")
        found.append(
            info(
                "steps without retry",
                f"a failure of {shown} is final at once",
                'give those that call others a retry, such as @step("charge", retry="exponential(5, 1s)")',
            )
        )
    else:
        found.append(ok("steps without retry", "none"))
    return found

"""How Hypothesis explores the model."""

from hypothesis import HealthCheck, Phase, settings


def profile(examples: int, *, steps: int, shrinks: bool = False, derandomize: bool = False) -> settings:
    """`shrinks`: a failing sequence is made short, which takes minutes with a real database."""
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        derandomize=derandomize,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink) if shrinks else (Phase.generate,),
        report_multiple_bugs=False,
    )

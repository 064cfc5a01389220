"""The rate of each caller."""

from zart.http.rates import Rates


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_passes_and_then_the_rate_counts():
    """Three at once, then one each half second; the answer says when the next one may come."""
    clock = Clock()
    rates = Rates(2.0, 3, clock=clock)
    assert [rates.take("ann") for _ in range(4)] == [0, 0, 0, 0.5]
    clock.now += 0.25
    assert rates.take("ann") == 0.25
    clock.now += 0.25
    assert rates.take("ann") == 0
    assert rates.take("ann") > 0


def test_callers_do_not_share_a_bucket():
    """One that is too fast harms nobody else."""
    rates = Rates(1.0, 1, clock=Clock())
    assert rates.take("ann") == 0
    assert rates.take("ann") > 0
    assert rates.take("bob") == 0


def test_a_bucket_holds_no_more_than_a_burst():
    """An hour of silence saves nothing up."""
    clock = Clock()
    rates = Rates(100.0, 2, clock=clock)
    rates.take("ann")
    clock.now += 3600
    assert [rates.take("ann") > 0 for _ in range(3)] == [False, False, True]


def test_the_number_of_buckets_is_bounded():
    """Those that were not heard of for longest are forgotten."""
    rates = Rates(1.0, 1, most_callers=100, clock=Clock())
    for number in range(1000):
        rates.take(f"address {number}")
    assert len(rates) == 100
    assert rates.take("address 999") > 0

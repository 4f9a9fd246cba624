import pytest

from benchmarks.users import PRECISION, Search, Service, percentile


@pytest.mark.parametrize("limit", [3, 60, 119, 120, 121, 200, 700, 5000])
@pytest.mark.parametrize("step", [1.12, 1.5])
def test_the_search_finds_the_most_users_that_are_kept(limit: int, step: float) -> None:
    search = Search(120, step)
    tried = 0
    while search.next:
        tried += 1
        assert tried < 100
        search.learn(search.next, search.next <= limit)
    assert search.kept <= limit < search.kept * PRECISION + 1


def test_one_standstill_decides_nothing() -> None:
    search = Search(120, 1.5)
    stood_still = set()
    while search.next:
        users = search.next
        search.learn(users, users <= 300 and users in stood_still)
        stood_still.add(users)
    assert search.kept <= 300 < search.kept * PRECISION + 1


def test_a_server_that_keeps_nobody_has_none() -> None:
    search = Search(50, 1.5)
    while search.next:
        search.learn(search.next, kept=False)
    assert search.kept == 0


@pytest.mark.parametrize(
    ("service", "kept"),
    [
        (Service(requests=100, failures=0, p50=49, p99=299), True),
        (Service(requests=100, failures=0, p50=50, p99=299), False),
        (Service(requests=100, failures=0, p50=49, p99=300), False),
        (Service(requests=100, failures=5, p50=49, p99=299), True),
        (Service(requests=100, failures=6, p50=49, p99=299), False),
        (Service(requests=0, failures=0, p50=0, p99=0), False),
    ],
)
def test_who_is_served_well(service: Service, kept: bool) -> None:
    assert service.kept is kept


def test_percentiles_of_counted_times() -> None:
    times = {10: 98, 200: 1, 3000: 1}
    assert [percentile(times, share) for share in (0.5, 0.99, 1)] == [10, 200, 3000]
    assert percentile({}, 0.5) == 0

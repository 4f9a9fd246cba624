import pytest

from benchmarks.users import PRECISION, Search, Service, percentile


@pytest.mark.parametrize("limit", [3, 60, 119, 120, 121, 200, 700, 5000])
@pytest.mark.parametrize("step", [1.12, 1.5])
def test_the_search_finds_the_most_users_that_the_server_can_handle(limit: int, step: float) -> None:
    search = Search(120, step)
    tried = 0
    while search.next:
        tried += 1
        assert tried < 100
        search.learn(search.next, search.next <= limit)
    assert search.met <= limit < search.met * PRECISION + 1


def test_one_pause_of_the_machine_does_not_change_the_result() -> None:
    search = Search(120, 1.5)
    paused = set()
    while search.next:
        users = search.next
        search.learn(users, users <= 300 and users in paused)
        paused.add(users)
    assert search.met <= 300 < search.met * PRECISION + 1


def test_a_server_that_never_meets_the_objectives_has_none() -> None:
    search = Search(50, 1.5)
    while search.next:
        search.learn(search.next, met=False)
    assert search.met == 0


@pytest.mark.parametrize(
    ("service", "meets"),
    [
        (Service(requests=100, failures=0, p50=49, p99=299), True),
        (Service(requests=100, failures=0, p50=50, p99=299), False),
        (Service(requests=100, failures=0, p50=49, p99=300), False),
        (Service(requests=100, failures=5, p50=49, p99=299), True),
        (Service(requests=100, failures=6, p50=49, p99=299), False),
        (Service(requests=0, failures=0, p50=0, p99=0), False),
    ],
)
def test_objectives(service: Service, meets: bool) -> None:
    assert service.meets_objectives is meets


def test_percentiles_of_counted_times() -> None:
    times = {10: 98, 200: 1, 3000: 1}
    assert [percentile(times, share) for share in (0.5, 0.99, 1)] == [10, 200, 3000]
    assert percentile({}, 0.5) == 0

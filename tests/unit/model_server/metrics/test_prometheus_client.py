import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from model_server.metrics._prometheus_client import Observer, value_of

BOUNDS = (0.2, 0.5, 1.0)


def histogram() -> Histogram:
    return Histogram("numbers", "Numbers", buckets=BOUNDS, registry=CollectorRegistry())


@pytest.mark.parametrize("amount", [-1.0, 0.0, 0.1, 0.2, 0.3, 0.5, 1.0, 1.0000001, 9e9, float("inf")])
def test_an_observer_counts_as_its_histogram_does(amount: float) -> None:
    theirs, ours = histogram(), histogram()
    theirs.observe(amount)
    bucket = Observer(ours).observe(amount)
    found, expected = (next(iter(metric.collect())).samples for metric in (ours, theirs))
    counts = {sample.labels["le"]: sample.value for sample in expected if sample.name == "numbers_bucket"}
    assert [sample for sample in found if not sample.name.endswith("_created")] == [
        sample for sample in expected if not sample.name.endswith("_created")
    ]
    assert bucket == list(counts.values()).index(1.0)


def test_a_value_is_what_the_page_shows() -> None:
    registry = CollectorRegistry()
    value_of(Counter("events", "Events", registry=registry)).inc(2)
    depth = value_of(Gauge("depth", "Depth", registry=registry))
    depth.set(3.0)
    depth.inc(-1)
    page = generate_latest(registry).decode().splitlines()
    assert {"events_total 2.0", "depth 2.0"} <= set(page)

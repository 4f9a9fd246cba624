from prometheus_client import CollectorRegistry

from model_server.metrics.samples import SampleMetrics, SampleReason


def test_samples_are_counted_by_reason_from_0_on() -> None:
    registry = CollectorRegistry()
    metrics = SampleMetrics(registry)
    metrics.keep(SampleReason.OUTLYING)
    metrics.fail()

    kept = {
        name: registry.get_sample_value("samples_kept_total", {"reason": name}) for name in ("rejected", "outlying")
    }
    assert kept == {"rejected": 0, "outlying": 1}
    assert registry.get_sample_value("samples_failed_total") == 1

"""Figures of a server, as Prometheus reads them."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Metrics:
    """Requests, seconds and images of each detector.

    Args:
        waiting: says how many images are on their way.
    """

    def __init__(self, waiting: Callable[[], float]) -> None:
        self._registry = CollectorRegistry()
        of, registry = ["detector"], self._registry
        self._requests = Counter(
            "ahl_requests", "Requests to score.", [*of, "status"], registry=registry
        )
        self._seconds = Histogram(
            "ahl_request_seconds", "Seconds that a request took.", of, registry=registry
        )
        self._images = Counter("ahl_images", "Photographs scored.", of, registry=registry)
        gauge = Gauge("ahl_waiting", "Photographs that are on their way.", registry=registry)
        gauge.set_function(waiting)

    def add(self, detector: str, status: int, seconds: float, images: int) -> None:
        """Count a request that has been answered."""
        self._requests.labels(detector, str(status)).inc()
        self._seconds.labels(detector).observe(seconds)
        self._images.labels(detector).inc(images)

    def text(self) -> bytes:
        """All figures in the text format."""
        return generate_latest(self._registry)

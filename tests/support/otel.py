"""A fresh OpenTelemetry SDK, whose providers are the global ones while a test runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.metrics import _internal as metrics_api
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.util._once import Once


class Recorded:
    """What an application has told OpenTelemetry."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.tracer_provider = TracerProvider(shutdown_on_exit=False)
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self._reader = InMemoryMetricReader()
        self.meter_provider = MeterProvider([self._reader], shutdown_on_exit=False)

    def spans(self, kind: str = "", name: str = "") -> list[ReadableSpan]:
        """The spans that have ended, of one kind (`SERVER`) or whose name contains `name`."""
        return [
            span for span in self._exporter.get_finished_spans() if kind in ("", span.kind.name) and name in span.name
        ]

    def points(self, name: str) -> list[tuple[dict[str, Any], Any]]:
        """The data points of a metric: attributes, and value (of a histogram: how many)."""
        found: list[tuple[dict[str, Any], Any]] = []
        data = self._reader.get_metrics_data()
        for resource in data.resource_metrics if data else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    if metric.name == name:
                        found += [
                            (dict(point.attributes or {}), getattr(point, "value", getattr(point, "count", None)))
                            for point in metric.data.data_points
                        ]
        return found

    def units(self) -> dict[str, str]:
        """The unit of every metric of ours."""
        data = self._reader.get_metrics_data()
        return {
            metric.name: metric.unit or ""
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            if scope.scope.name == "fastapi_resumable"
            for metric in scope.metrics
        }


@contextmanager
def recording() -> Iterator[Recorded]:
    """Make a new SDK the global one: OpenTelemetry lets that be done once, so what it keeps is put back."""
    recorded = Recorded()
    kept = trace._TRACER_PROVIDER, metrics_api._METER_PROVIDER
    try:
        trace._TRACER_PROVIDER, trace._TRACER_PROVIDER_SET_ONCE = None, Once()
        metrics_api._METER_PROVIDER, metrics_api._METER_PROVIDER_SET_ONCE = None, Once()
        trace.set_tracer_provider(recorded.tracer_provider)
        metrics.set_meter_provider(recorded.meter_provider)
        yield recorded
    finally:
        trace._TRACER_PROVIDER, metrics_api._METER_PROVIDER = kept
        recorded.tracer_provider.shutdown()
        recorded.meter_provider.shutdown()

"""The operator's page: the library's OpenTelemetry metrics, as live plots. It shows no ids."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.responses import FileResponse
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from pydantic import BaseModel

# In production, take a reader that exports: see "Monitor in production" in the documentation.
reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader], shutdown_on_exit=False))

router = APIRouter(prefix="/operations", include_in_schema=False)


class Figures(BaseModel):
    """The figures of one worker, since it was started; those of several are added up by the page."""

    worker: str
    streams: float
    readers: float
    survived: float
    outcomes: dict[str, int]
    first_bounds: list[float]
    """Upper bounds of the histogram of the time to first byte, in seconds; the last bucket has none."""
    first_counts: list[int]
    bytes_held: float


@router.get("")
def page() -> FileResponse:
    """The page."""
    return FileResponse(Path(__file__).parent / "static" / "operations.html")


@router.get("/figures")
def figures() -> Figures:
    """What the page draws."""
    points = read_points()

    def total(name: str) -> float:
        return sum(point.value for point in points.get(f"fastapi_resumable.{name}", []))

    outcomes: Counter[str] = Counter()
    for point in points.get("fastapi_resumable.stream.duration", []):
        outcomes[point.attributes["outcome"]] += point.count
    first = points.get("fastapi_resumable.stream.time_to_first_event", [])
    return Figures(
        worker=os.environ.get("EXAMPLE_WORKER", "1"),
        streams=total("streams.active"),
        readers=total("readers.active"),
        survived=total("disconnects_survived"),
        outcomes=outcomes,
        first_bounds=first[0].explicit_bounds if first else [],
        first_counts=[sum(counts) for counts in zip(*(point.bucket_counts for point in first), strict=True)],
        bytes_held=total("log.bytes"),
    )


def read_points() -> dict[str, list[Any]]:
    """The data points of every metric, by its name."""
    data = reader.get_metrics_data()
    return {
        metric.name: list(metric.data.data_points)
        for resource in (data.resource_metrics if data else [])
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }

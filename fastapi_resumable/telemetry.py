"""Metrics and spans for OpenTelemetry, by the meter and the tracer `fastapi_resumable`.

Invariant: nothing is measured per event, and nothing at all unless the application has set a provider. OpenTelemetry is
never imported here: an application that has set a provider has imported it.

Private state of FastAPI that is used if it exists: `scope["fastapi.telemetry"]`, by which FastAPI records the end of a
request. Without it, a response that ends in order would count as a success although its stream has failed.
"""

import functools
import sys
from collections import Counter
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from time import perf_counter, time_ns
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary, WeakSet

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation
    from opentelemetry.trace import Span

NAME = "fastapi_resumable"
# The SDK may be missing, so a provider that does nothing is known by the name of its class, which the API has private.
_UNSET = {"ProxyTracerProvider", "NoOpTracerProvider", "_ProxyMeterProvider", "NoOpMeterProvider"}
# The SDK's default buckets begin at 5 and end at 10,000: made for milliseconds, they would hold all answers in one.
_SECONDS = [0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800]
_FIRST = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30]
_CALL = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10]
_BYTES = [2**power for power in range(8, 25, 2)]

# OpenTelemetry keeps the callbacks of the first gauge of a name only, so all applications on a provider share one.
_observed: "WeakKeyDictionary[MeterProvider, WeakSet[Telemetry]]" = WeakKeyDictionary()

_F = TypeVar("_F", bound=Callable[..., Any])


def _harmless(method: _F) -> _F:
    """Keep what a provider, a processor or an exporter raises from reaching the stream."""

    @functools.wraps(method)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except Exception:  # noqa: BLE001  # OpenTelemetry's own rule: telemetry never breaks the application
            return None

    return guarded  # type: ignore[return-value]  # it has the signature of `method`


class _Instruments:
    """The instruments of one meter provider."""

    def __init__(self, meter: "Meter") -> None:
        def histogram(name: str, unit: str, buckets: list[float], description: str) -> Any:
            return meter.create_histogram(name, unit, description, explicit_bucket_boundaries_advisory=buckets)

        def counter(name: str, unit: str, description: str) -> Any:
            return meter.create_counter(f"{NAME}.{name}", unit, description)

        def level(name: str, unit: str, description: str) -> Any:
            return meter.create_up_down_counter(f"{NAME}.{name}.active", unit, description)

        stream = f"{NAME}.stream"
        self.streams = level("streams", "{stream}", "Streams that are being generated.")
        self.readers = level("readers", "{reader}", "Responses that follow a stream.")
        self.duration = histogram(f"{stream}.duration", "s", _SECONDS, "From the request to the end of the stream.")
        self.first = histogram(f"{stream}.time_to_first_event", "s", _FIRST, "From the request to the first bytes.")
        self.size = histogram(f"{stream}.size", "By", _BYTES, "Bytes of the whole stream.")
        self.reads = counter("reads", "{read}", "Requests to read a stream.")
        self.dropped = counter("reads.dropped", "{read}", "Reads that the server cut off.")
        self.survived = counter("disconnects_survived", "{disconnect}", "Clients that left a stream which went on.")
        self.operation = histogram(f"{NAME}.store.operation.duration", "s", _CALL, "One call of a shared store.")


@dataclass(slots=True)
class StreamTelemetry:
    """What is measured of one stream, from its request to its end."""

    _scope: MutableMapping[str, Any]
    _started: float
    _instruments: _Instruments | None
    _request_span: "Span | None"
    _start_span: "Callable[[], Span] | None"
    _span: "Span | None" = None
    _route: dict[str, str] | None = None
    _has_first: bool = False
    _has_left: bool = False
    _has_ended: bool = False
    _has_failed: bool = False
    _error: BaseException | None = None

    @_harmless
    def open_span(self) -> str | None:
        """Start the span of the stream, which is about to begin; return what the spans of replays link to.

        It is the text of a `traceparent` header, so that a store can keep it for other processes.
        """
        # Not when the request comes: a request that is refused would leave a span that never ends, and tools that show
        # spans as they start would show it as running.
        if self._span is None and self._start_span is not None and not self._has_ended:
            self._span = self._start_span()
        # An application may trace its requests only, by an instrumentation that takes a provider of its own.
        span = self._span or self._request_span
        if span is None or not (context := span.get_span_context()).is_valid:
            return None
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def _spans(self) -> "list[Span]":
        """The spans that are still open."""
        # The request's span ends with its response, so it may have ended long before the stream does.
        return [span for span in (self._request_span, self._span) if span is not None and span.is_recording()]

    def _event(self, name: str) -> None:
        for span in self._spans():
            span.add_event(f"{NAME}.{name}")

    @_harmless
    def begun(self) -> None:
        """Note that there is a stream now: the application has sent a 2xx."""
        if self._route is None:
            # FastAPI puts the route into the scope as it handles the request, so it is not known before. Its telemetry
            # has the path with the prefixes of the routers.
            request, route = self._scope.get("fastapi.telemetry"), self._scope.get("route")
            path = getattr(request, "route", None) or getattr(route, "path_format", None)
            self._route = {"http.route": path} if isinstance(path, str) else {}
            if self._span is not None:
                self._span.set_attributes(self._route)
            if self._instruments is not None and not self._has_ended:
                self._instruments.streams.add(1, self._route)

    @_harmless
    def first_byte(self) -> None:
        """Note that the application has sent its first bytes."""
        if not self._has_first and self._instruments is not None:
            self._instruments.first.record(perf_counter() - self._started, self._route)
        self._has_first = True

    @_harmless
    def client_left(self) -> None:
        """Note that the client which began the stream has gone while it was live."""
        if not self._has_left and not self._has_ended:
            self._has_left = True
            self._event("client_left")
            if self._instruments is not None:
                self._instruments.survived.add(1, self._route)

    @_harmless
    def ended(self, outcome: str, error: BaseException | None = None, size: int = 0) -> None:
        """Note how the stream ends, before it does: once its clients know, the request's span may be closed."""
        # A stop and an end may come at the same time; the first one is what clients see.
        if self._has_ended:
            return
        self._has_ended = True
        for span in self._spans():
            span.set_attribute(f"{NAME}.stream.outcome", outcome)
            # A stop, a replacement and a shutdown are no errors of the application, so the spans keep their status.
            if outcome == "failed":
                span.set_status(sys.modules["opentelemetry.trace"].StatusCode.ERROR)
                if error is not None:
                    span.record_exception(error)
                    span.set_attribute("error.type", type(error).__qualname__)
        self._has_failed, self._error = outcome == "failed", error
        self.fail_request()
        if outcome in {"cancelled", "replaced"}:
            self._event("stopped")
        if self._instruments is not None and self._route is not None:
            seconds = perf_counter() - self._started
            self._instruments.streams.add(-1, self._route)
            self._instruments.duration.record(seconds, {**self._route, "outcome": outcome})
            self._instruments.size.record(size, self._route)
        if self._span is not None:
            self._span.end()

    @_harmless
    def fail_request(self) -> None:
        """Have FastAPI count the request as failed, if the stream has: by the type of the error, not by its status."""
        request: Any = self._scope.get("fastapi.telemetry")
        if self._has_failed and isinstance(errors := getattr(request, "_exceptions", None), list):
            if request.status_code is not None and self._request_span is not None and self._request_span.is_recording():
                self._request_span.set_attribute("http.response.status_code", request.status_code)
            # FastAPI counts a request without a status as failed, and takes its last exception for the reason.
            request.status_code = None
            if self._error is not None and self._error not in errors:
                errors.append(self._error)


def _version() -> str:
    return str(getattr(sys.modules[__package__], "__version__", ""))


class Telemetry:
    """What one `Resumable` measures; `store` is asked for the bytes that it holds."""

    def __init__(self, store: object = None, *, stream_ids: bool = True) -> None:
        self.store = store
        self._stream_ids = stream_ids
        self._provider: Any = None
        self._instruments: _Instruments | None = None

    @_harmless
    def instruments(self) -> _Instruments | None:
        """The instruments, or `None` while there is no provider."""
        if (metrics := sys.modules.get("opentelemetry.metrics")) is None:
            return None
        # Looked up each time, because the application may set its provider after it has made the `Resumable`.
        provider = metrics.get_meter_provider()
        if provider is not self._provider:
            self._provider, self._instruments = provider, None
            if type(provider).__name__ not in _UNSET:
                meter = provider.get_meter(NAME, _version())
                self._instruments = _Instruments(meter)
                self._observe(provider, meter)
        return self._instruments

    def _observe(self, provider: Any, meter: "Meter") -> None:
        if provider in _observed:
            _observed[provider].add(self)
            return
        # Weak, because a provider lives as long as the process, and would keep every application of a test suite alive.
        observers = _observed[provider] = WeakSet({self})

        def observe(_options: "CallbackOptions") -> "list[Observation]":
            held: Counter[str] = Counter()
            for store in [telemetry.store for telemetry in observers]:
                if (size := getattr(store, "held_bytes", None)) is not None:
                    # By the name, which needs no import of the stores: those are above this module.
                    held[type(store).__name__.removesuffix("Store").lower()] += size
            observation = sys.modules["opentelemetry.metrics"].Observation
            return [observation(size, {"store": store}) for store, size in held.items()]

        meter.create_observable_gauge(f"{NAME}.log.bytes", [observe], "By", "Bytes of logs that are held.")

    @_harmless
    def stream(
        self, stream_id: str, epoch: str, scope: MutableMapping[str, Any], started: float
    ) -> StreamTelemetry | None:
        """Begin to measure a stream, whose request came in at `started`; `None` where no provider is set."""
        instruments = self.instruments()
        trace = sys.modules.get("opentelemetry.trace")
        request_span = start_span = None
        if trace is not None:
            if not (request_span := trace.get_current_span()).is_recording():
                request_span = None
            attributes = {f"{NAME}.stream.epoch": epoch}
            if self._stream_ids:
                attributes[f"{NAME}.stream.id"] = stream_id
            if request_span is not None:
                request_span.set_attributes(attributes)
            if type(trace.get_tracer_provider()).__name__ not in _UNSET:
                # The recorder starts it from the stream's task, so the parent and the time are those of the request,
                # taken here.
                start_span = functools.partial(
                    trace.get_tracer(NAME, _version()).start_span,
                    f"{NAME}.stream",
                    context=sys.modules["opentelemetry.context"].get_current(),
                    attributes=attributes,
                    start_time=time_ns(),
                )
        if instruments is None and request_span is None and start_span is None:
            return None
        return StreamTelemetry(scope, started, instruments, request_span, start_span)

    @_harmless
    def read(self, kind: str, result: str = "ok", *, traceparent: str | None = None) -> None:
        """Count a request to read a stream, and link its span to that of the stream.

        `kind` is `first`, `resume`, `replay` or `attach`; `result` is `ok`, `204`, or the code of the error.
        """
        if (instruments := self.instruments()) is not None:
            # The codes of the HTTP errors, without the prefix that all of a stream have: `not_found`, `replaced`,
            # `pending`.
            instruments.reads.add(1, {"kind": kind, "result": result.removeprefix("stream_")})
        trace = sys.modules.get("opentelemetry.trace")
        if traceparent is not None and trace is not None and (span := trace.get_current_span()).is_recording():
            _, trace_id, span_id, flags = (int(part, 16) for part in traceparent.split("-"))
            # Remote, because the stream may be produced by another worker. A link, because a replay is no part of the
            # first request.
            context = trace.SpanContext(trace_id, span_id, is_remote=True, trace_flags=trace.TraceFlags(flags))
            span.add_link(context, {f"{NAME}.read.kind": kind})

    @_harmless
    def reader_attached(self) -> Callable[[str | None], None] | None:
        """Count a reader; call what is returned when it leaves, with the reason if the server cut it off."""
        if (instruments := self.instruments()) is None:
            return None
        # Kept for `left`, so that a provider that is replaced meanwhile gets the decrement of its own increment.
        instruments.readers.add(1)

        @_harmless
        def left(reason: str | None = None) -> None:
            instruments.readers.add(-1)
            if reason is not None:
                instruments.dropped.add(1, {"reason": reason})

        return left

"""Clients that run in a browser, behind a line that is cut 200 times: in a real Chromium, unmodified."""

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page

from tests.clients.lines import ENDINGS, finished_line, open_line
from tests.support.apps.counting import MODULES
from tests.support.params import representatives
from tests.support.server import Server, serve

pytestmark = pytest.mark.browser

EVENT_SOURCE = """
url => new Promise(resolve => {
  const texts = [], endings = [];
  const source = new EventSource(url);
  source.onmessage = event => texts.push(event.data);
  source.addEventListener("cancelled", event => endings.push(["cancelled", JSON.parse(event.data).code]));
  source.addEventListener("error", event => {
    if (event.data) endings.push(["error", JSON.parse(event.data).code]);
    else if (source.readyState === EventSource.CLOSED) resolve({texts, endings});
  });
})
"""
FETCH_EVENT_SOURCE = """
async ([url, method]) => {
  const { fetchEventSource } = await import("/modules/@microsoft/fetch-event-source/lib/esm/index.js");
  const texts = [], endings = [];
  let last;
  await fetchEventSource(url, {
    method,
    fetch: (input, init) =>
      fetch(input, { ...init, headers: { ...init.headers, ...(last && { "last-event-id": last }) } }),
    onopen(response) {
      if (response.status === 204 || response.status === 404) throw new Ended();
      if (!response.ok) throw new Error(response.status);
    },
    onmessage(event) {
      if (event.id) last = event.id;
      if (event.event) endings.push([event.event, JSON.parse(event.data).code]);
      else if (event.data) texts.push(event.data);
    },
    onerror(error) {
      if (error instanceof Ended) throw error;
    },
  }).catch(error => { if (!(error instanceof Ended)) throw error; });
  return { texts, endings };

  function Ended() {}
}
"""
BROKEN_BEFORE_THE_BLANK_LINE = """
async () => {
  const { fetchEventSource } = await import("/modules/@microsoft/fetch-event-source/lib/esm/index.js");
  const bytes = new TextEncoder().encode("data: 1\\nid: one\\n\\ndata: 2\\nid: two\\n");
  const pieces = [controller => controller.enqueue(bytes), controller => controller.error(new TypeError("cut"))];
  const broken = new ReadableStream({ pull: controller => pieces.shift()(controller) }, { highWaterMark: 0 });
  const requests = [];
  const seen = [];
  await fetchEventSource("/", {
    fetch(input, init) {
      requests.push(init.headers["last-event-id"]);
      const body = requests.length === 1 ? broken : "";
      return new Response(body, { headers: { "content-type": "text/event-stream" } });
    },
    onmessage: event => seen.push(event.data),
    onerror: () => 0,
  });
  return { seen, resumedAfter: requests[1] };
}
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """The application that counts behind bad lines."""
    with serve("tests.support.apps.counting:app") as running:
        yield running


@pytest.fixture
def tab(person: BrowserContext, server: Server) -> Page:
    """An empty page of the application's; it reaches the lines across origins."""
    page = person.new_page()
    page.goto(server.url)
    return page


def run(tab: Page, script: str, argument: Any) -> tuple[list[str], list[tuple[str, str]]]:
    """What a client has received until it ended: texts, and what it was told of the end."""
    found = tab.evaluate(script, argument)
    return found["texts"], [(kind, code) for kind, code in found["endings"]]


def test_an_event_source_gets_all_over_200_cuts(tab: Page, server: Server) -> None:
    """It comes back by itself to the very endpoint, and closes when that answers 204."""
    line = open_line(server)
    texts, endings = run(tab, EVENT_SOURCE, line.count)
    line.check(texts, cuts=200)
    assert endings == []


@pytest.mark.parametrize(("end", "last"), ENDINGS)
def test_an_event_source_sees_a_failure_and_a_stop(tab: Page, server: Server, end: str, last: tuple[str, str]) -> None:
    """As an event of that type; `error` comes with data then. It closes."""
    line = open_line(server, cuts=5, end=end)
    texts, endings = run(tab, EVENT_SOURCE, line.count)
    line.check(texts, cuts=5)
    assert endings == [last]


def test_an_event_source_closes_when_only_the_end_was_cut_off(tab: Page, server: Server) -> None:
    """It asks again, and gets 204."""
    line = finished_line(server)
    line.check(run(tab, EVENT_SOURCE, line.replay)[0])


@pytest.fixture
def package() -> None:
    """The npm package that the page imports."""
    if not (MODULES / "@microsoft/fetch-event-source").is_dir():
        pytest.fail("The npm packages of the tests are not installed: run `make js`.")


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("method", representatives(["GET", "POST"], "POST".__eq__))
def test_fetch_event_source_gets_all_over_200_cuts(tab: Page, server: Server, method: str) -> None:
    """It comes back by itself, POST or GET, to the id of the last event that its caller has seen."""
    line = open_line(server)
    texts, endings = run(tab, FETCH_EVENT_SOURCE, [line.count, method])
    line.check(texts, cuts=200)
    assert endings == []


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(("end", "last"), ENDINGS)
def test_fetch_event_source_sees_a_failure_and_a_stop(
    tab: Page, server: Server, end: str, last: tuple[str, str]
) -> None:
    """As a message with that event; the promise is fulfilled."""
    line = open_line(server, cuts=5, end=end)
    texts, endings = run(tab, FETCH_EVENT_SOURCE, [line.count, "POST"])
    line.check(texts, cuts=5)
    assert endings == [last]


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("missing", [0, 1], ids=["the end", "the blank line"])
def test_fetch_event_source_ends_when_only_the_end_was_cut_off(tab: Page, server: Server, missing: int) -> None:
    """It asks again, and gets 204, or the event whose blank line it has not seen."""
    line = finished_line(server, missing)
    line.check(run(tab, FETCH_EVENT_SOURCE, [line.replay, "GET"])[0])


@pytest.mark.usefixtures("package")
def test_fetch_event_source_ends_when_the_stream_is_gone(tab: Page, server: Server) -> None:
    """A 404, as after a stop, is final."""
    line = open_line(server)
    assert run(tab, FETCH_EVENT_SOURCE, [line.replay, "GET"]) == ([], [])


@pytest.mark.usefixtures("package")
def test_fetch_event_source_by_itself_resumes_after_an_event_that_it_has_not_handed_over(tab: Page) -> None:
    """What the wrapped `fetch` is for: the connection breaks between the second event's id and its blank line."""
    assert tab.evaluate(BROKEN_BEFORE_THE_BLANK_LINE) == {"seen": ["1"], "resumedAfter": "two"}

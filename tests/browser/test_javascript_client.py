"""The JavaScript client where it is at home: reload, network, visibility, `sessionStorage`."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.support.server import Server, serve

pytestmark = pytest.mark.browser

SETUP = """async () => {
    Object.assign(window, await import("/v1/resumable.js"));
    const post = { method: "POST", headers: { "Content-Type": "application/json" } };
    window.start = (script, options) => resumable("/script", { ...post, body: JSON.stringify(script), ...options });
    window.follow = async (stream) => {
        Object.assign(window, { stream, events: [], states: [stream.state] });
        stream.addEventListener("statechange", () => states.push(stream.state));
        for await (const { data } of stream) events.push(data);
    };
    // A client that waits for days, unless something wakes it.
    window.patient = { minDelay: 1e9, random: () => 1 };
}"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """An application that plays scripts."""
    with serve("tests.support.apps.scripted:app", ready="/events") as server:
        yield server


@pytest.fixture
def page(person: BrowserContext, server: Server) -> Page:
    """A page of the application's, with the client in it."""
    page = person.new_page()
    load(page, server)
    return page


def load(page: Page, server: Server) -> None:
    """Open the page, and let it import the module as a script would."""
    page.goto(f"{server.url}/whoami")
    page.evaluate(SETUP)


def gated(name: str, **more: Any) -> dict[str, Any]:
    """A script that sends an event, waits at the gate of this name, and sends another."""
    steps = [["send", b"data: 1\n\n".hex()], ["wait", name], ["send", b"data: 2\n\n".hex()]]
    return {"name": name, "steps": steps, **more}


def begin(page: Page, name: str, options: str = "{}") -> None:
    """Start a stream in the page, and follow it there until the first event has come."""
    page.evaluate(f"(script) => void follow(start(script, {options}))", gated(name))
    wait(page, "events.length === 1")


def wait(page: Page, condition: str) -> None:
    """Wait until an expression is true in the page."""
    page.wait_for_function(condition)


def open_gate(server: Server, name: str) -> None:
    """Let the script go on."""
    httpx.post(f"{server.url}/gate/{name}").raise_for_status()


def test_the_served_module_finds_the_routes_beside_it(page: Page, server: Server) -> None:
    """Without a word about a prefix, `lookup` asks where the module came from."""
    begin(page, "beside")
    items = page.evaluate("lookup([stream.id])")
    assert [item["status"] for item in items] == ["in_progress"]
    open_gate(server, "beside")
    wait(page, "stream.state === 'done'")
    assert page.evaluate("events") == ["1", "2"]
    assert page.evaluate("states") == ["connecting", "open", "done"]


def test_a_script_tag_can_import_it(page: Page, server: Server) -> None:
    """`<script type="module">` with the stable URL, which leads to the one that is kept."""
    page.set_content("<p id='out'></p>")
    content = """
        import { resumable } from "/v1/resumable.js";
        document.querySelector("#out").textContent = typeof resumable;
    """
    page.add_script_tag(content=content, type="module")
    expect(page.locator("#out")).to_have_text("function")


def test_a_reloaded_page_goes_on_where_it_was(page: Page, server: Server) -> None:
    """What was rendered and the place are in `sessionStorage`; the endpoint runs once."""
    begin(page, "reload", '{ key: "chat" }')
    page.evaluate("addEventListener('pagehide', () => stream.save(events))")
    load(page, server)
    page.evaluate("async () => void follow(await restore('chat'))")
    assert page.evaluate("stream.saved") == ["1"]
    open_gate(server, "reload")
    wait(page, "stream.state === 'done'")
    assert page.evaluate("events") == ["2"]
    assert page.evaluate("sessionStorage.length") == 0
    assert httpx.get(f"{server.url}/events").json().count("called:reload") == 1


def test_a_request_that_a_reload_overtook_is_repeated(page: Page, server: Server) -> None:
    """The page goes before the answer's head has come; the next one attaches to the same run."""
    page.evaluate('(script) => void start(script, { key: "chat" })', gated("overtaken", before=[["wait", "head"]]))
    httpx.get(f"{server.url}/events", params={"until": "waits:head"}).raise_for_status()
    load(page, server)
    page.evaluate("async () => void follow(await restore('chat'))")
    open_gate(server, "head")
    open_gate(server, "overtaken")
    wait(page, "stream.state === 'done'")
    assert page.evaluate("events") == ["1", "2"]
    assert httpx.get(f"{server.url}/events").json().count("called:overtaken") == 1


def test_another_tab_keeps_a_place_of_its_own(page: Page, person: BrowserContext, server: Server) -> None:
    """`sessionStorage` belongs to the tab."""
    begin(page, "tabs", '{ key: "chat" }')
    other = person.new_page()
    load(other, server)
    assert other.evaluate("restore('chat')") is None
    open_gate(server, "tabs")
    wait(page, "stream.state === 'done'")


def test_a_client_that_waits_comes_back_with_the_network(page: Page, person: BrowserContext, server: Server) -> None:
    """`online` ends the pause, however long it is."""
    begin(page, "online", "patient")
    person.set_offline(True)
    page.evaluate("dispatchEvent(new Event('online'))")  # the old connection is given up, a new one fails
    wait(page, "stream.state === 'reconnecting'")
    open_gate(server, "online")
    person.set_offline(False)
    wait(page, "stream.state === 'done'")
    assert page.evaluate("events") == ["1", "2"]


def test_a_client_that_waits_comes_back_when_the_page_is_looked_at(page: Page, server: Server) -> None:
    """`visibilitychange` ends the pause, if the page has become visible."""
    spoiled = "(...request) => (window.dead ? Promise.reject(dead) : fetch(...request))"
    begin(page, "visible", f"{{ ...patient, fetch: {spoiled} }}")
    page.evaluate("() => { window.dead = new TypeError('no network'); dispatchEvent(new Event('online')); }")
    wait(page, "stream.state === 'reconnecting' && stream.error === dead")
    open_gate(server, "visible")
    page.evaluate(
        """() => {
            window.dead = null;
            Object.defineProperty(document, "hidden", { value: true, configurable: true });
            document.dispatchEvent(new Event("visibilitychange"));
        }"""
    )
    assert page.evaluate("stream.state") == "reconnecting"
    page.evaluate("() => { delete document.hidden; document.dispatchEvent(new Event('visibilitychange')); }")
    wait(page, "stream.state === 'done'")
    assert page.evaluate("events") == ["1", "2"]


def test_a_connection_that_died_in_the_background_is_replaced_at_once(page: Page, server: Server) -> None:
    """A page that was away for longer than the server is ever silent does not trust its connection."""
    page.evaluate(
        """() => {
            window.now = 0;
            const performance = { now: () => now };
            const timers = { setTimeout: (...timer) => setTimeout(...timer), clearTimeout: (id) => clearTimeout(id) };
            window.clock = { ...timers, performance };
        }"""
    )
    begin(page, "background", "{ clock }")
    page.evaluate("() => { now += 10_000; document.dispatchEvent(new Event('visibilitychange')); }")
    page.evaluate("() => { now += 15_000; document.dispatchEvent(new Event('visibilitychange')); }")
    wait(page, "states.length === 4")
    open_gate(server, "background")
    wait(page, "stream.state === 'done'")
    assert page.evaluate("states") == ["connecting", "open", "reconnecting", "open", "done"]
    assert page.evaluate("events") == ["1", "2"]


def test_a_stop_as_the_page_goes_reaches_the_server(page: Page, server: Server) -> None:
    """It is sent with `keepalive`, so the page need not stay for it."""
    begin(page, "leaving")
    page.evaluate("addEventListener('pagehide', () => stream.stop())")
    page.goto("about:blank")
    entries = httpx.get(f"{server.url}/events", params={"until": "ended:leaving"}, timeout=60).json()
    assert "finished:leaving" not in entries

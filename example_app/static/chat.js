// The chat. A conversation's id is its stream's id: the answer that is being written in it can be followed from any tab.

import { Line } from "./line.js";
import { Bookmark, conversations, newId } from "./memory.js";
import { StreamError, follow, lookup, offsetOf, stop } from "./resume.js";
import * as view from "./view.js";

const CUT_FOR = 1200; // ms without a network; the next attempt after that succeeds
const BACKLOG = 200; // ms after a reconnect in which what comes is what was missed
const RECHECK = 4000; // ms between lookups, only while a spinner turns that no open stream will stop
const LOST_PLACE = new Set(["offset_lost", "unknown_event_id", "offset_out_of_range"]);

const line = new Line();
const tabs = new BroadcastChannel("example-app");
const writing = new Set(); // conversations whose answer is being written
let visit = newVisit(""); // to a conversation; the next visit ends it

function newVisit(id) {
  return { id, turns: [], leaving: new AbortController(), loaded: false, answering: false, epoch: "", bookmark: null };
}

// --- conversations ---------------------------------------------------------------------------------------------------

/** Show the conversation that the address names, and follow its answer if one is being written. */
async function open() {
  visit.leaving.abort(new DOMException("Another conversation is open.", "AbortError"));
  visit.bookmark?.keepNow();
  const here = (visit = newVisit(location.hash.slice(1)));
  view.clear();
  showSidebar();
  if (here.id) {
    try {
      here.turns = await turnsOf(here.id);
    } catch {
      if (here === visit) view.say("The server cannot be reached. Reload the page to try again.");
      return;
    }
  }
  if (here !== visit) return;
  here.loaded = true;
  for (const { question, answer, status } of here.turns) {
    view.addQuestion(question);
    if (answer !== null) new view.Answer(answer).note(status);
  }

  const last = here.turns.at(-1);
  if (last && !conversations.title(here.id)) remember(here.id, here.turns[0].question);
  const kept = Bookmark.of(here.id);
  // A reload may overtake the question itself. Its idempotency key makes it safe to send it again.
  if (kept && !kept.sent && !here.turns.some(({ turn }) => turn === kept.turn)) await ask(kept.question, kept.turn);
  else if (last?.answer === null) await read(here, last);
  else if (!last) view.welcome();
}

async function turnsOf(id) {
  const response = await fetch(`/conversations/${encodeURIComponent(id)}`, { cache: "no-store" });
  if (!response.ok) throw await StreamError.from(response);
  return response.json();
}

async function forget() {
  const { id } = visit;
  await stop(id);
  await fetch(`/conversations/${encodeURIComponent(id)}`, { method: "DELETE" });
  conversations.remove(id);
  go("");
}

function go(id) {
  if (location.hash.slice(1) === id) open();
  else location.hash = id;
}

function remember(id, question) {
  conversations.add(id, question.slice(0, 80));
  showSidebar();
}

function showSidebar() {
  view.showConversations(conversations.all(), visit.id, writing);
  view.showTitle(conversations.title(visit.id), visit.answering);
}

function spin(id, isWriting) {
  writing[isWriting ? "add" : "delete"](id);
  showSidebar();
}

/** One request tells which conversations have an answer in the making, wherever it was asked for. */
async function refresh() {
  const found = await lookup(conversations.all().map(({ id }) => id)).catch(() => null);
  if (!found) return;
  writing.clear();
  for (const item of found) if (!item.is_done) writing.add(item.conversation_id);
  const news = writing.has(visit.id) && visit.loaded && !visit.answering;
  if (visit.answering) writing.add(visit.id);
  showSidebar();
  if (news) open();
}

// --- questions and answers -------------------------------------------------------------------------------------------

/** Ask, and read the answer. The request can be repeated: its idempotency key names the turn. */
async function ask(question, turn = newId()) {
  if (!visit.id) {
    visit = newVisit(newId());
    history.pushState(null, "", `#${visit.id}`);
  }
  const here = visit;
  here.loaded = true;
  if (!conversations.title(here.id)) remember(here.id, question);
  Object.assign(new Bookmark(here.id, turn), { question, sent: false }).keepNow();
  view.addQuestion(question);

  const past = here.turns.flatMap((one) => [
    { role: "user", content: one.question },
    { role: "assistant", content: one.answer },
  ]);
  const request = {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-Conversation-Id": here.id, "Idempotency-Key": turn },
    body: JSON.stringify({ model: "example", stream: true, messages: [...past, { role: "user", content: question }] }),
  };
  here.turns.push({ turn, question, answer: null, status: null });
  await read(here, here.turns.at(-1), { start: ["/v1/chat/completions", request] });
}

/** Follow the answer to its end, over however many connections. */
async function read(here, turn, options = {}, answer = new view.Answer()) {
  const bookmark = (here.bookmark = new Bookmark(here.id, turn.turn));
  answer.text = bookmark.text;
  here.answering = answer.writing = true;
  here.epoch = ""; // not yet known
  view.setWriting(true);
  spin(here.id, true);
  try {
    finish(here, turn, answer, { status: await copy(here, bookmark, answer, options), text: bookmark.text });
  } catch (error) {
    if (here === visit) await recover(here, turn, answer, error);
  }
}

/** Copy the stream to the screen and into the bookmark; returns how it ended. */
async function copy(here, bookmark, answer, options) {
  let backlogEnds = 0;
  const onState = (state, { lastEventId, epoch }) => {
    const at = offsetOf(lastEventId) ?? options.from ?? 0;
    if (state === "open") {
      here.epoch = epoch;
      bookmark.sent = true;
      if (options.start) tabs.postMessage({ id: here.id });
      bookmark.pieces.push({ from: at, caught: at, to: at });
      if (at || !options.start) backlogEnds = performance.now() + BACKLOG;
      if (at) answer.seam();
      view.say(at ? `Connected again at byte ${at.toLocaleString("en")}: nothing lost, nothing twice.` : "");
    } else if (state === "waiting") {
      view.say(`Cut off at byte ${at.toLocaleString("en")}. The server goes on writing.`);
    }
    view.showLine(state, bookmark.pieces);
  };
  const events = follow(here.id, {
    ...options,
    lastEventId: bookmark.lastEventId,
    signal: here.leaving.signal,
    fetch: line.fetch,
    accept: (response) => response.headers.get("X-Turn") === bookmark.turn,
    onState,
  });

  for await (const event of events) {
    here.leaving.signal.throwIfAborted();
    const { text, end } = interpret(event);
    const isBacklog = performance.now() < backlogEnds;
    if (!isBacklog) answer.live();
    answer.add(text);
    bookmark.text += text;
    bookmark.lastEventId = event.id || bookmark.lastEventId;
    const piece = bookmark.pieces.at(-1);
    piece.to = offsetOf(bookmark.lastEventId) ?? piece.to;
    if (isBacklog) piece.caught = piece.to;
    view.showLine("open", bookmark.pieces);
    if (end) return end;
    bookmark.keep();
  }
  return "completed";
}

/** What an event says: more text, or how the stream ended. */
function interpret({ type, data }) {
  if (data === "[DONE]") return { text: "", end: "completed" };
  const said = JSON.parse(data);
  const { code, message } = said.error ?? said;
  if (code === "replaced") throw Object.assign(new StreamError(message), { code: "stream_replaced" });
  if (LOST_PLACE.has(code)) throw Object.assign(new StreamError(message), { code });
  if (type === "cancelled") return { text: "", end: "cancelled" };
  if (code === "interrupted" || code === "producer_lost") return { text: "", end: "interrupted" };
  if (type === "error" || said.error) return { text: "", end: "failed" };
  return { text: said.choices?.[0]?.delta?.content ?? "" };
}

/** The stream cannot be followed as it was: find out what became of the answer. */
async function recover(here, turn, answer, error) {
  if (error.code === "stream_replaced") {
    settle(here);
    await open(); // somebody asked on, elsewhere
  } else if (LOST_PLACE.has(error.code)) {
    const from = here.bookmark.lastEventId ? 0 : (error.detail?.earliest ?? 0); // from the start, or what is left of it
    here.bookmark.drop();
    await read(here, turn, { from }, answer);
  } else if (error.status === 404) {
    const kept = await keptAnswer(here, turn);
    if (here !== visit) return;
    const text = kept?.answer ?? here.bookmark.text;
    answer.text = text;
    finish(here, turn, answer, { status: kept?.status ?? "lost", text });
  } else if (error.code === "cancelled") {
    finish(here, turn, answer, { status: "cancelled", text: "" });
  } else {
    if (error instanceof StreamError) view.giveBack(turn.question);
    finish(here, turn, answer, { status: "failed", text: here.bookmark.text, message: error.message });
  }
}

/** The turn as the app has kept it. A stream that was stopped is gone a moment before its text is kept. */
async function keptAnswer(here, turn, tries = 5) {
  const kept = (await turnsOf(here.id).catch(() => [])).find((one) => one.turn === turn.turn);
  if (kept?.answer !== null || tries === 1) return kept;
  await new Promise((resolve) => setTimeout(resolve, 200));
  return keptAnswer(here, turn, tries - 1);
}

function finish(here, turn, answer, { status, text, message }) {
  Object.assign(turn, { answer: text, status });
  answer.writing = false;
  answer.note(status, message);
  const { pieces } = here.bookmark;
  settle(here);
  view.showLine(status, pieces);
  view.say(status === "completed" ? summary(pieces) : "");
  tabs.postMessage({ id: here.id, done: true });
}

function summary(pieces) {
  if (pieces.length === 1) return "The answer is complete, over one connection.";
  const caughtUp = pieces.slice(1).reduce((sum, { from, caught }) => sum + caught - from, 0);
  return `The answer is complete, over ${pieces.length} connections. ${caughtUp.toLocaleString("en")} bytes had to be caught up; none is missing.`;
}

function settle(here) {
  here.bookmark.drop();
  here.bookmark = null;
  here.answering = false;
  view.setWriting(false);
  spin(here.id, false);
}

// --- what happens ----------------------------------------------------------------------------------------------------

view.wire({
  onAsk: (question) => ask(question),
  onStop: () => stop(visit.id, visit.epoch).catch(() => view.say("The server cannot be reached: not stopped.")),
  onCut: () => line.cut(CUT_FOR),
  onNew: () => go(""),
  onForget: forget,
});

tabs.addEventListener("message", ({ data: { id, done } }) => {
  if (visit.answering && id === visit.id) return; // we see it ourselves
  spin(id, !done);
  if (!done && id === visit.id) open();
});
addEventListener("storage", showSidebar);
addEventListener("hashchange", open);
addEventListener("pagehide", () => visit.bookmark?.keepNow());
document.addEventListener("visibilitychange", () => document.hidden || refresh());
setInterval(() => {
  const unfollowed = [...writing].some((id) => id !== visit.id || !visit.answering);
  if (unfollowed && !document.hidden) refresh();
}, RECHECK);

open();
refresh();

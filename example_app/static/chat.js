// The chat. A conversation's id is its stream's id: the answer that is being written in it can be followed from any tab.

import { Line } from "./line.js";
import { conversations, newId } from "./memory.js";
import { ResumableError, lookup, restore, resumable, resume, stop } from "./v1/resumable.js";
import * as view from "./view.js";

const CUT_FOR = 1200; // ms without a network; the next attempt after that succeeds
const BACKLOG = 200; // ms after a reconnect in which what comes is what was missed
const RECHECK = 4000; // ms between lookups while a conversation that is not followed here has a spinner
const REPLACED = new Set(["replaced", "stream_replaced"]);
const LOST_PRODUCER = new Set(["interrupted", "producer_lost"]);
const LOST_PLACE = new Set(["offset_lost", "unknown_event_id", "offset_out_of_range"]);

const line = new Line();
const tabs = new BroadcastChannel("example-app");
const writing = new Set(); // conversations whose answer is being written
let visit = newVisit(""); // to a conversation; the next visit ends it

function newVisit(id) {
  return { id, turns: [], loaded: false, answering: false, stream: null, pieces: [], save: () => {} };
}

// --- conversations ---------------------------------------------------------------------------------------------------

/** Show the conversation that the address names, and follow its answer if one is being written. */
async function open() {
  visit.save();
  visit.stream?.detach();
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
  const stream = here.id ? await restore(here.id, { fetch: answerTo(() => stream.saved.turn) }) : null;
  if (here !== visit) return stream?.detach();
  const turn = here.turns.find((one) => one.turn === stream?.saved.turn);
  if (!last && !stream) view.welcome();
  // The reload overtook the question itself. It is on its way again, under the same idempotency key.
  else if (stream && !turn) await read(here, begin(here, stream.saved), stream);
  else if (stream && turn === last && !last.answer) await read(here, last, stream);
  else {
    if (stream) exhaust(stream);
    if (last.answer === null) await read(here, last, replay(here, last));
  }
}

async function turnsOf(id) {
  const response = await fetch(`/conversations/${encodeURIComponent(id)}`, { cache: "no-store" });
  if (!response.ok) throw new Error(`The server answered ${response.status}.`);
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

/** One request finds the conversations whose answer is being written, in this browser or another. */
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

/** Ask, and read the answer. */
async function ask(question) {
  if (!visit.id) {
    visit = newVisit(newId());
    history.pushState(null, "", `#${visit.id}`);
  }
  const here = visit;
  here.loaded = true;
  if (!conversations.title(here.id)) remember(here.id, question);
  const past = here.turns.flatMap((one) => [
    { role: "user", content: one.question },
    { role: "assistant", content: one.answer },
  ]);
  const turn = begin(here, { turn: newId(), question });
  const stream = resumable("/v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json", "Idempotency-Key": turn.turn },
    body: JSON.stringify({ model: "example", stream: true, messages: [...past, { role: "user", content: question }] }),
    id: here.id,
    key: here.id, // the name under which this tab keeps its place
    fetch: line.fetch,
  });
  stream.addEventListener("statechange", () => tabs.postMessage({ id: here.id }), { once: true });
  await read(here, turn, stream);
}

function begin(here, { turn, question }) {
  view.addQuestion(question);
  here.turns.push({ turn, question, answer: null, status: null });
  return here.turns.at(-1);
}

/** The answer to a question that was asked elsewhere. */
function replay(here, { turn }, from = 0) {
  return resume(here.id, { from, key: here.id, fetch: answerTo(() => turn) });
}

/** A `fetch` that accepts only the answer to one question: while that is queued, the answer before it is still served. */
function answerTo(turn) {
  return async (url, init) => {
    const response = await line.fetch(url, init);
    if (response.status !== 200 || response.headers.get("X-Turn") === turn()) return response;
    await response.body?.cancel();
    throw new Error("An earlier answer is still there.");
  };
}

/** A stream whose answer is here already: once it has ended, this tab forgets it. */
async function exhaust(stream) {
  try {
    for await (const _ of stream.bytes());
  } catch {} // it is gone, so there is nothing left to forget
}

/** Follow the answer to its end, over however many connections. */
async function read(here, turn, stream, answer = new view.Answer()) {
  const progress = { turn: turn.turn, question: turn.question, text: "", pieces: [], ...stream.saved };
  Object.assign(here, { stream, pieces: progress.pieces, answering: true, save: () => stream.save(progress) });
  here.save();
  answer.text = progress.text;
  answer.writing = true;
  view.setWriting(true);
  spin(here.id, true);
  try {
    const status = await copy(stream, progress, answer);
    if (stream.state === "stopped") await showKept(here, turn, answer, { status: "cancelled", text: progress.text });
    else if (stream.state === "done") finish(here, turn, answer, { status, text: progress.text });
  } catch (error) {
    if (here === visit) await recover(here, turn, answer, error, progress);
  }
}

/** Copy the stream to the screen and into our progress; returns how the answer came out. */
async function copy(stream, progress, answer) {
  const { pieces } = progress;
  const isReplay = pieces.length > 0 || stream.offset > 0;
  let backlogEnds = 0;
  stream.addEventListener("statechange", () => {
    const at = stream.offset;
    if (stream.state === "open") {
      pieces.push({ from: at, caught: at, to: at });
      if (at || isReplay) backlogEnds = performance.now() + BACKLOG;
      if (at) answer.seam();
      view.say(at ? `Connected again at byte ${at.toLocaleString("en")}: nothing lost, nothing twice.` : "");
    } else if (stream.state === "reconnecting") {
      view.say(`Cut off at byte ${at.toLocaleString("en")}. The server goes on writing.`);
    } else return;
    view.showLine(stream.state, pieces);
  });
  view.showLine(stream.state, pieces);

  let status = "completed";
  for await (const event of stream) {
    const { text, failed } = interpret(event);
    const isBacklog = performance.now() < backlogEnds;
    if (!isBacklog) answer.live();
    answer.add(text);
    progress.text += text;
    const piece = pieces.at(-1);
    piece.to = stream.offset;
    if (isBacklog) piece.caught = piece.to;
    view.showLine("open", pieces);
    if (failed) status = "failed";
  }
  return status;
}

/** What an event says: more text, or that the language model failed. */
function interpret({ data }) {
  if (data === "[DONE]") return { text: "" };
  const said = JSON.parse(data);
  return { text: said.choices?.[0]?.delta?.content ?? "", failed: Boolean(said.error) };
}

/** The stream cannot be followed any further: find out how the answer ended. */
async function recover(here, turn, answer, error, progress) {
  const { text } = progress;
  if (REPLACED.has(error.code)) {
    settle(here);
    await open(); // the conversation went on in another browser
  } else if (LOST_PLACE.has(error.code)) {
    const from = text ? 0 : (error.detail?.earliest ?? 0); // from the start, or what is left of it
    await read(here, turn, replay(here, turn, from), answer);
  } else if (error.status === 404) {
    await showKept(here, turn, answer, { status: "lost", text });
  } else if (error.code === "cancelled") {
    finish(here, turn, answer, { status: "cancelled", text });
  } else if (LOST_PRODUCER.has(error.code)) {
    finish(here, turn, answer, { status: "interrupted", text });
  } else {
    const refused = error instanceof ResumableError && error.status;
    if (refused) view.giveBack(turn.question);
    finish(here, turn, answer, { status: "failed", text, message: refused ? error.message : undefined });
  }
}

/** End with what the app has kept of the answer; otherwise with what we have. */
async function showKept(here, turn, answer, otherwise) {
  const kept = await keptAnswer(here, turn);
  if (here !== visit) return;
  const { status, text } = kept?.answer == null ? otherwise : { status: kept.status, text: kept.answer };
  if (text !== otherwise.text) answer.text = text;
  finish(here, turn, answer, { status, text });
}

/** The turn as the app has kept it. A stream that was stopped is gone a moment before its text is kept. */
async function keptAnswer(here, turn, tries = 5) {
  const kept = (await turnsOf(here.id).catch(() => [])).find((one) => one.turn === turn.turn);
  if (kept?.answer !== null || tries === 1) return kept;
  await new Promise((resolve) => setTimeout(resolve, 200));
  return keptAnswer(here, turn, tries - 1);
}

function finish(here, turn, answer, { status, text, message }) {
  if (here !== visit) return;
  Object.assign(turn, { answer: text, status });
  answer.writing = false;
  answer.note(status, message);
  const { pieces } = here;
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
  Object.assign(here, { answering: false, save: () => {} });
  view.setWriting(false);
  spin(here.id, false);
}

// --- what happens ----------------------------------------------------------------------------------------------------

view.wire({
  onAsk: (question) => ask(question),
  onStop: () => visit.stream.stop().catch(() => view.say("The server cannot be reached: not stopped.")),
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
addEventListener("pagehide", () => visit.save());
document.addEventListener("visibilitychange", () => document.hidden || refresh());
setInterval(() => {
  const unfollowed = [...writing].some((id) => id !== visit.id || !visit.answering);
  if (unfollowed && !document.hidden) refresh();
}, RECHECK);

open();
refresh();

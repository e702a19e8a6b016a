// Streams that survive their connection: start one, follow it over any number of sockets, stop it, look it up.
//
// The one rule: a position is the id of the last event that was handled. Whatever breaks, `follow` asks for what comes
// after it, so nothing is lost and nothing comes twice. The rest of the app knows nothing of sockets.

const FIRST_WAIT = 250; // ms before the first retry; doubles up to the longest
const LONGEST_WAIT = 4000;
const SILENCE = 45_000; // ms without a byte, three keep-alives, after which a connection counts as dead

const streamURL = (id, query = {}) => `/v1/stream/${encodeURIComponent(id)}?${new URLSearchParams(query)}`;

/** An answer that is not a stream: `status` and `code` say why. */
export class StreamError extends Error {
  static async from(response) {
    const body = await response.json().catch(() => ({}));
    const detail = typeof body.detail === "object" && body.detail !== null ? body.detail : { message: body.detail };
    const error = new StreamError(detail.message || `The server answered ${response.status}.`);
    error.status = response.status;
    error.code = detail.code ?? "";
    error.detail = detail;
    error.retryAfter = Number(response.headers.get("Retry-After")) * 1000 || 0;
    return error;
  }
}

/**
 * Yield the events of stream `id`, `{type, data, id}`, from after `lastEventId` to its end.
 *
 * `start`: the request that begins the stream, as `[url, init]`; without it the stream is only read. It is repeated if
 * no answer came, so it should carry an `Idempotency-Key`.
 * `from`: a byte offset to begin at, where the stream's head is lost.
 * `accept(response)`: whether this is the stream that was meant; if not, it has not begun yet.
 * `onState(state, detail)`: "connecting", "open", "waiting".
 *
 * Throws `StreamError` when the server says that there is nothing to follow.
 */
export async function* follow(id, options = {}) {
  const { start, from = 0, accept = () => true, onState = () => {}, fetch = globalThis.fetch, signal } = options;
  let { lastEventId = "" } = options;
  let begun = !start;
  let failures = 0;

  for (;;) {
    const silence = new Watchdog(SILENCE);
    let news = false;
    let failure;
    try {
      onState("connecting", { lastEventId });
      const connection = { signal: AbortSignal.any([silence.signal, ...(signal ? [signal] : [])]) };
      const response = begun
        ? await fetch(streamURL(id, from && !lastEventId ? { from } : {}), { ...connection, headers: position(lastEventId) })
        : await fetch(start[0], { ...start[1], ...connection });
      if (response.status === 204) return;
      if (!response.ok) throw await StreamError.from(response);
      if (!accept(response)) throw new Error("An earlier stream is still there.");
      begun = true;
      onState("open", { lastEventId, epoch: response.headers.get("X-Stream-Epoch") ?? "" });
      for await (const event of events(response.body, silence, from && !lastEventId)) {
        news = true;
        lastEventId = event.id || lastEventId;
        if (event.data !== null) yield event;
      }
      // A clean end is most likely the end. Asking once more, as EventSource does, makes sure: it is answered 204.
      if (!lastEventId) return;
    } catch (error) {
      if (signal?.aborted) throw signal.reason;
      if (error instanceof StreamError && !isPassing(error, begun)) throw error;
      failure = error;
    } finally {
      silence.stop();
    }
    failures = news ? 0 : failures + 1;
    if (news && !failure) continue;
    const wait = Math.max(failure?.retryAfter ?? 0, Math.min(FIRST_WAIT * 2 ** Math.max(failures - 1, 0), LONGEST_WAIT));
    onState("waiting", { lastEventId, error: failure });
    await pause(wait * (0.8 + 0.4 * Math.random()), signal); // not all clients at once, after a restart
  }
}

/** Stop the generation itself, for everybody. With an epoch, a late click cannot hit the next answer. */
export async function stop(id, epoch = "") {
  await fetch(streamURL(id, epoch ? { epoch } : {}), { method: "DELETE" });
}

/** What the server knows of these streams, in one request. */
export async function lookup(ids) {
  if (!ids.length) return [];
  const response = await fetch("/v1/streams/lookup", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ conversation_ids: ids }),
  });
  if (!response.ok) throw await StreamError.from(response);
  return response.json();
}

/** The offset in an event id of the library's (`<epoch>-<offset>`), or null for one of the app's own. */
export function offsetOf(eventId) {
  const match = /^[a-z2-7]{16}-(\d+)$/.exec(eventId);
  return match ? Number(match[1]) : null;
}

const position = (lastEventId) => (lastEventId ? { "Last-Event-ID": lastEventId } : {});

// The stream is still queued, or something between here and there is restarting. A refused start is final.
function isPassing(error, begun) {
  return error.code === "stream_pending" || (begun && [429, 502, 503, 504].includes(error.status));
}

// Parse server-sent events, by the rules of the HTML standard. `midway`: the first one may be the rest of a torn one.
async function* events(body, silence, midway) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let type = "";
  let data = [];
  let id = "";
  try {
    for (;;) {
      silence.restart();
      const { done, value } = await reader.read();
      if (done) return; // an unfinished event is not an event
      rest += value;
      // A CR at the very end may be half of a CRLF: wait for what follows it.
      const lines = rest.split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      for (const line of lines) {
        if (line === "") {
          if (!midway && (data.length || id)) yield { type: type || "message", data: data.length ? data.join("\n") : null, id };
          midway = false;
          type = "";
          data = [];
          id = "";
          continue;
        }
        const [, field, content] = /^([^:]*)(?:: ?(.*))?$/s.exec(line);
        if (field === "event") type = content ?? "";
        else if (field === "data") data.push(content ?? "");
        else if (field === "id" && !content?.includes("\0")) id = content ?? "";
      }
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}

// Aborts a connection that has gone silent: on a phone that changed networks no error ever comes.
class Watchdog {
  #controller = new AbortController();
  #timer = 0;
  #limit;

  constructor(limit) {
    this.#limit = limit;
    this.restart();
  }

  get signal() {
    return this.#controller.signal;
  }

  restart() {
    this.stop();
    this.#timer = setTimeout(() => this.#controller.abort(new TypeError("The connection is silent.")), this.#limit);
  }

  stop() {
    clearTimeout(this.#timer);
  }
}

// Wait, but not when the network has just come back or the user has just returned.
function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const waking = new AbortController();
    const end = (settle) => {
      clearTimeout(timer);
      waking.abort();
      settle();
    };
    const timer = setTimeout(() => end(resolve), ms);
    addEventListener("online", () => end(resolve), { signal: waking.signal });
    document.addEventListener("visibilitychange", () => document.hidden || end(resolve), { signal: waking.signal });
    signal?.addEventListener("abort", () => end(() => reject(signal.reason)), { signal: waking.signal });
    if (signal?.aborted) end(() => reject(signal.reason));
  });
}

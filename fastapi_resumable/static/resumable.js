// Types and documentation: resumable.d.ts. The router serves this with a hash in its name.
const [, PREFIX = "/v1"] = /^(.*)\/resumable\.\w+\.js$/.exec(import.meta.url) ?? [];
const batches = new Map();

export class ResumableError extends Error {
  constructor(message, about) {
    super(message);
    Object.assign(this, { name: "ResumableError", status: 0, code: "" }, about);
  }
}

export function resumable(url, options = {}) {
  const headers = new Headers(options.headers);
  const { id = headers.get("X-Conversation-Id") ?? random(), method, body } = options;
  headers.set("X-Conversation-Id", String.fromCharCode(...new TextEncoder().encode(id)));
  if (!headers.has("Idempotency-Key")) headers.set("Idempotency-Key", random());
  // Repeated after a reload; no credentials.
  const kept = [...headers].filter(([name]) => /^content-type|^x-conversation|^idempotency/.test(name));
  const again = typeof (body ?? "") === "string" && { method, body, headers: kept };
  return new Stream({ id, start: new Request(url, options).url, again }, { ...options, headers });
}

export function resume(id, options = {}) {
  const { epoch, from: offset = 0 } = options;
  return new Stream({ id, epoch, offset }, options);
}

export async function restore(key, options = {}) {
  const place = JSON.parse(await (options.store ?? sessionStorage).getItem("resumable:" + key));
  if (!place) return null;
  const { again } = place;
  const headers = new Headers(options.headers);
  again?.headers.forEach(([name, value]) => headers.set(name, value));
  return new Stream(place, { ...options, ...again, headers, key });
}

export async function stop(id, options = {}) {
  await ask("DELETE", { ...options, id }, options);
}

export async function lookup(all, options) {
  const ids = [...all];
  const batch = batches.get(options) ?? { ids: new Set() };
  batches.set(options, batch);
  ids.forEach((id) => batch.ids.add(id));
  batch.items ??= new Promise((resolve) => setTimeout(resolve)).then(async () => {
    batches.delete(options);
    const rest = [...batch.ids];
    const items = [];
    while (rest.length) {
      const body = JSON.stringify({ conversation_ids: rest.splice(0, 1000) });
      const url = (options?.prefix ?? PREFIX) + "/streams/lookup";
      const response = await send(url, { ...options, method: "POST", body });
      items.push(...(await response.json()));
    }
    return items;
  });
  return (await batch.items).filter((item) => ids.some((id) => (item.conversation_id + "::").startsWith(id + "::")));
}

class Stream extends EventTarget {
  state = "connecting";
  error = null;
  response = null;
  offset = 0;
  #options;
  #clock;
  #received;
  #next;
  #uses = 0;
  #over;
  #stopped;
  #socket;
  #body;
  #fresh;
  #timer;
  #heard;
  #failures = 0;
  #retry = 0;
  #wake;
  #hurry;
  #life = new AbortController();

  constructor(place, options) {
    super();
    Object.assign(this, place);
    this.#received = this.offset;
    this.#options = options;
    this.#clock = options.clock ?? globalThis;
    const { signal } = options;
    const life = { signal: this.#life.signal };
    const abort = () => this.#finish("detached", signal.reason);
    if (signal?.aborted) abort();
    signal?.addEventListener("abort", abort, life);
    globalThis.addEventListener?.("online", () => this.#nudge(0), life);
    globalThis.document?.addEventListener("visibilitychange", () => document.hidden || this.#nudge(20_000), life);
    this.#keep();
    this.#next = this.#read();
    this.#next.catch(() => {});
  }

  save(value) {
    this.saved = value;
    this.#over || this.#keep();
  }

  async stop() {
    await ask("DELETE", this, this.#options);
    this.#stopped = true;
    this.#wake?.();
    this.#over || this.#listen(1000);
  }

  detach() {
    this.#finish("detached");
  }

  async *[Symbol.asyncIterator]() {
    const decoder = new TextDecoder("utf-8", { ignoreBOM: this.offset });
    let { offset } = this;
    let line = [];
    let last;
    let event = {};
    for await (const chunk of this.bytes()) {
      let at = this.offset - chunk.length;
      for (const byte of chunk) {
        const isHalf = byte === 10 && last === 13;
        last = byte;
        at++;
        if (isHalf || this.#over) continue;
        line.push(byte);
        if (byte !== 10 && byte !== 13) continue;
        const text = decoder.decode(new Uint8Array(line), { stream: true });
        line = [];
        if (text.length > 1) {
          const [, field, value] = /^([^:\r\n]*):? ?([^\r\n]*)/.exec(text);
          event[field] = field === "data" && event.data !== undefined ? event.data + "\n" + value : value;
          if (field === "retry" && value >= 0) this.#retry = +value;
          continue;
        }
        const { event: type, data, id = "" } = event;
        event = {};
        if (data === undefined || this.#isTerminal(data)) continue;
        this.offset = offset = at;
        this.eventId = id;
        yield { type: type || "message", data, id };
      }
      this.offset = offset;
    }
  }

  async *text() {
    const decoder = new TextDecoder("utf-8", { ignoreBOM: this.offset });
    let tail = "";
    for await (const chunk of this.bytes()) {
      tail = (tail + String.fromCharCode(...chunk.slice(-3))).slice(-3);
      this.offset -= /[\xc0-\xff]$|[\xe0-\xff].$|[\xf0-\xff]..$|$/s.exec(tail)[0].length;
      const text = decoder.decode(chunk, { stream: true });
      if (text) yield text;
    }
    const text = decoder.decode();
    if (text) yield text;
  }

  async *bytes() {
    if (this.#uses++) throw new TypeError("The stream is being read.");
    try {
      for (let chunk; (chunk = await this.#next); this.#next = this.#read()) {
        this.offset = this.#received;
        yield chunk;
      }
    } finally {
      this.detach();
    }
  }

  async #read() {
    for (;;) {
      if (this.#stopped && !this.#body) this.#finish("stopped");
      if (this.error && this.#over) throw this.error;
      if (this.#over) return;
      try {
        this.#body ??= await this.#connect();
        this.#listen();
        const { value } = await this.#body.read().catch((error) => {
          if (!this.#fresh) throw error;
          return {};
        });
        this.#rest();
        if (value) {
          this.#received += value.length;
          this.#failures = 0;
          this.#fresh = false;
          return value;
        }
        await this.#conclude();
      } catch (error) {
        await this.#recover(error);
      }
    }
  }

  async #connect() {
    this.#socket = new AbortController();
    this.#fresh = true;
    this.#listen();
    const { signal } = this.#socket;
    const response = await (this.start ? send(this.start, { ...this.#options, signal }) : this.#ask("GET"));
    this.epoch = response.headers.get("X-Stream-Epoch") ?? this.epoch;
    if (this.start) {
      const url = response.headers.get("Content-Location");
      if (url) this.url = new URL(url, this.start).href;
      this.start = this.again = null;
      this.#keep();
      if (this.#stopped) await this.stop(); // again
    }
    this.response = response;
    this.#become("open");
    return (response.body ?? new Blob().stream()).getReader();
  }

  #ask(method) {
    return ask(method, { ...this, offset: this.#received }, this.#options, this.#socket.signal);
  }

  // A proxy may end a response in order although the server is lost.
  async #conclude() {
    if (!this.epoch) return this.#finish("done");
    this.#listen();
    const { headers } = await this.#ask("HEAD").catch(({ status }) => {
      if (status < 500 && status !== 404) this.#finish("done");
      throw new Error("The connection broke.");
    });
    const status = headers.get("X-Stream-Status") ?? "completed";
    const isAll = this.response.status === 204 || this.#received >= headers.get("X-Stream-Total-Bytes");
    if (status === "cancelled") this.#finish("stopped");
    else if (/^fa|^int/.test(status)) throw new ResumableError(`The stream has ${status}.`, { code: status });
    else if (status === "completed" && isAll) this.#finish("done");
    else throw new Error("The connection broke.");
  }

  #isTerminal(data) {
    const [, code, message] = /^{"code":"(\w+)","message":(".*"),"error":{"code":"\1"/.exec(data) ?? [];
    if (code === "cancelled") this.#finish("stopped");
    else if (code === "store_unavailable") {
      this.#received = this.offset;
      this.#body.cancel();
    } else if (code) this.#finish("lost", new ResumableError(JSON.parse(message), { code }));
    return code;
  }

  async #recover(error) {
    this.#hangUp();
    if (this.#over || this.#stopped) return;
    const { minDelay = 500, maxDelay = 15_000, random = Math.random } = this.#options;
    const { status, code, retryAfter } = error;
    // The application's own refusal of a start is final.
    const isFinal = this.start && status && !retryAfter && (code || /50[01]/.test(status));
    if (isFinal || (status < 500 && ![408, 425, 429].includes(status))) return this.#finish("lost", error);
    this.error = error;
    const delay = random() * Math.min(maxDelay, minDelay * 2 ** this.#failures++) + (retryAfter || this.#retry);
    const pause = new Promise((resolve) => {
      this.#timer = this.#clock.setTimeout(resolve, delay);
      this.#wake = resolve;
    });
    this.#become("reconnecting");
    if (this.#hurry) this.#wake();
    this.#wake = await pause;
    if (this.#hurry) this.#failures = 0;
    this.#hurry = false;
  }

  #nudge(ms) {
    if (this.#wake ? this.error.retryAfter : !(this.#clock.performance.now() - this.#heard >= ms)) return;
    this.#hurry = true;
    this.#wake?.();
    this.#socket.abort();
  }

  #listen(ms = this.#options.silence ?? 40_000) {
    this.#rest();
    this.#heard = this.#clock.performance.now();
    this.#timer = this.#clock.setTimeout(() => this.#socket.abort(), ms);
  }

  #rest() {
    this.#clock.clearTimeout(this.#timer);
    this.#heard = NaN;
  }

  #hangUp() {
    this.#rest();
    this.#body = undefined;
    this.#socket?.abort();
  }

  #finish(state, error = null) {
    if (this.#over) return;
    this.#over = true;
    this.error = error;
    this.#hangUp();
    this.#life.abort();
    this.#wake?.();
    if (state !== "detached") this.#keep(true);
    this.#become(state);
  }

  #become(state) {
    if (this.state === state) return;
    this.state = state;
    this.dispatchEvent(new Event("statechange"));
  }

  async #keep(forget) {
    const { key, store } = this.#options;
    if (!key || this.again === false) return;
    const { state, error, response, ...place } = this;
    try {
      const where = store ?? sessionStorage;
      await (forget ? where.removeItem("resumable:" + key) : where.setItem("resumable:" + key, JSON.stringify(place)));
    } catch {}
  }
}

function ask(method, { id, url, epoch = "", offset = "", eventId }, options, signal) {
  const headers = new Headers(options.headers);
  if (eventId === `${epoch}-${offset}`) headers.set("Last-Event-ID", eventId);
  url ??= `${options.prefix ?? PREFIX}/stream?conv_id=${encodeURIComponent(id)}`;
  url += (url.includes("?") ? "&" : "?") + new URLSearchParams({ epoch, from: offset });
  return send(url, { ...options, method, headers, body: undefined, signal, keepalive: !signal });
}

async function send(url, { fetch = globalThis.fetch, ...init }) {
  const response = await fetch(url, init);
  if (response.ok) return response;
  const { status } = response;
  const { detail } = Object(await response.json().catch(() => 0));
  const { message = `${status} ${JSON.stringify(detail) ?? ""}`, code = "" } = Object(detail);
  const after = response.headers.get("Retry-After");
  const retryAfter = Math.max(0, after * 1000 || Date.parse(after) - Date.now() || 0);
  throw new ResumableError(message, { status, code, retryAfter, detail });
}

function random() {
  return crypto.getRandomValues(new Uint32Array(4)).join("");
}

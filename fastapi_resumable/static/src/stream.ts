/** One stream, over however many connections. */

import type { FollowOptions, StreamState, StreamEvent } from "../resumable.js";
import { EventDecoder, PART_OF_CHARACTER, readTerminal } from "./events.js";
import { keep, type Place } from "./place.js";
import { ask, NOT_NOW, ResumableError, send } from "./request.js";
import { clipDelay, STOP_PATIENCE, SUSPICIOUS_SILENCE, Timers } from "./time.js";

type Options = FollowOptions & { method?: string | undefined; body?: unknown };
type Bytes = Uint8Array<ArrayBuffer>;

export class Stream<Saved> extends EventTarget {
  state: StreamState = "connecting";
  error: unknown = null;
  response: Response | null = null;
  #place: Place;
  #options: Options;
  #timers: Timers;
  /** How many bytes have come. `offset` is how many of them the caller has received. */
  #received: number;
  /** The next bytes. The first are read at once, so that the request is sent before the caller reads. */
  #next: Promise<Bytes | undefined>;
  #isTaken = false;
  #isOver = false;
  #isStopped = false;
  #connection = new AbortController();
  #body: ReadableStreamDefaultReader<Bytes> | undefined;
  /** Whether nothing has been delivered of this connection yet. */
  #isFresh = true;
  /** Whether the answer can be had again. If not, an earlier one may be recorded under its id. */
  #isRecorded = true;
  /** Removes the listeners of the page's events. */
  #pageListeners = new AbortController();

  constructor(place: Place, options: Options) {
    super();
    this.#place = place;
    this.#received = this.offset;
    this.#options = options;
    this.#timers = new Timers(options);
    const { signal } = options;
    const whileFollowed = { signal: this.#pageListeners.signal };
    const abort = () => this.#finish("detached", signal?.reason);
    if (signal?.aborted) abort();
    signal?.addEventListener("abort", abort, whileFollowed);
    globalThis.addEventListener?.("online", () => this.#reconnectNow(0), whileFollowed);
    const onVisible = () => document.hidden || this.#reconnectNow(SUSPICIOUS_SILENCE);
    globalThis.document?.addEventListener("visibilitychange", onVisible, whileFollowed);
    this.#savePlace();
    this.#next = this.#read();
    this.#next.catch(() => {}); // the caller gets it when it reads
  }

  get id() {
    return this.#place.id;
  }

  get epoch() {
    return this.#place.epoch;
  }

  get offset() {
    return this.#place.offset as number;
  }

  get saved() {
    return this.#place.saved as Saved | undefined;
  }

  save(value: Saved) {
    this.#place.saved = value;
    if (!this.#isOver) this.#savePlace();
  }

  async stop(): Promise<void> {
    // What is not recorded ends with its connection, and a DELETE would hit an earlier answer of its id.
    if (!this.#isRecorded) return this.#finish("stopped");
    // A DELETE would take what is complete away from later readers, and hit another answer after a refused start.
    if (this.state === "done" || (this.state === "lost" && !this.epoch)) return;
    const isEarly = !this.response;
    await ask("DELETE", this.#place, this.#options);
    // The answer came meanwhile, so the stop may have come before its request.
    if (isEarly && this.response) return this.stop();
    this.#isStopped = true;
    this.#timers.endPause?.();
    if (!this.#isOver) this.#watch();
  }

  detach() {
    this.#finish("detached");
  }

  // The three ways to read.

  async *[Symbol.asyncIterator](): AsyncGenerator<StreamEvent, void, void> {
    const decoder = new EventDecoder(!this.offset);
    let handedOut = this.offset;
    for await (const chunk of this.bytes()) {
      const start = this.offset - chunk.length;
      for (const { event, end } of decoder.feed(chunk)) {
        const error = readTerminal(event);
        if (error?.code === "cancelled") this.#finish("stopped");
        else if (error) this.#finish("lost", error);
        if (this.#isOver) break;
        this.#place.offset = handedOut = start + end;
        this.#place.eventId = event.id;
        yield event;
      }
      this.#timers.retry = clipDelay(decoder.retry);
      // An event that is not whole yet will have to be sent again.
      this.#place.offset = handedOut;
    }
  }

  async *text() {
    const decoder = new TextDecoder("utf-8", { ignoreBOM: !!this.offset });
    let tail = ""; // the last three bytes, a character for each
    for await (const chunk of this.bytes()) {
      tail = (tail + String.fromCharCode(...chunk.slice(-3))).slice(-3);
      // So will a character that is not whole yet.
      this.#place.offset = this.offset - (PART_OF_CHARACTER.exec(tail) as unknown as [string])[0].length;
      const text = decoder.decode(chunk, { stream: true });
      if (text) yield text;
    }
    const text = decoder.decode();
    if (text) yield text;
  }

  async *bytes() {
    if (this.#isTaken) throw new TypeError("It is being read.");
    this.#isTaken = true;
    try {
      for (let chunk; (chunk = await this.#next); this.#next = this.#read()) {
        this.#place.offset = this.#received;
        yield chunk;
      }
    } finally {
      this.detach();
    }
  }

  // Connections.

  async #read(): Promise<Bytes | undefined> {
    for (;;) {
      if (this.#isStopped && !this.#body) this.#finish("stopped");
      if (this.#isOver) {
        if (this.error) throw this.error;
        return;
      }
      try {
        this.#body ??= await this.#connect();
        this.#watch();
        const { value: bytes = await this.#conclude() } = await this.#body.read().catch((error): { value?: Bytes } => {
          // A connection that breaks before its first byte may be the end of a stream that is complete.
          if (!this.#isFresh || !this.epoch) throw error;
          return {};
        });
        this.#timers.unwatch();
        if (!bytes.length) continue;
        this.#received += bytes.length;
        this.#timers.failures = 0;
        this.#isFresh = false;
        return bytes;
      } catch (error) {
        await this.#recover(error as ResumableError);
      }
    }
  }

  async #connect() {
    const place = this.#place;
    const { start } = place;
    this.#connection = new AbortController();
    this.#isFresh = true;
    this.#watch();
    const { signal } = this.#connection;
    const response = await (start ? send(start, { ...this.#options, signal } as RequestInit) : this.#ask("GET"));
    place.epoch = response.headers.get("X-Stream-Epoch") ?? place.epoch;
    if (start) {
      const url = response.headers.get("Content-Location");
      if (url) place.url = new URL(url, response.url || start).href;
      place.start = place.again = undefined;
      // A server of another origin may hide its headers from a page.
      this.#isRecorded = !!place.epoch || response.type === "cors";
      this.#savePlace();
    }
    this.response = response;
    this.#enter("open");
    // The stop may have come before the request did.
    if (this.#isStopped) await this.stop();
    return (response.body ?? new Blob().stream()).getReader();
  }

  async #ask(method: "GET" | "HEAD") {
    const { epoch } = this;
    const place = { ...this.#place, offset: this.#received };
    const response = await ask(method, place, this.#options, this.#connection.signal);
    const answered = response.headers.get("X-Stream-Epoch") ?? (response.type === "cors" && epoch);
    // The sign-in page of a network is a 200 as well, and would be delivered as a part of the stream.
    if (epoch && answered !== epoch) throw new Error("Not the stream.");
    return response;
  }

  /**
   * Ask how the stream is: a proxy may end a response in good order although it has lost the server. Always throws; if
   * the stream is over, nobody sees it.
   */
  async #conclude(): Promise<never> {
    if (!this.epoch) throw this.#finish("done");
    this.#watch();
    const { headers } = await this.#ask("HEAD").catch(({ status }) => {
      // It may not be asked, or was replaced since: the end of the response is the best that there is.
      if ([401, 403, 405, 409, 501].includes(status)) this.#finish("done");
      throw new Error("Disconnected.");
    });
    const status = headers.get("X-Stream-Status") ?? "completed";
    const missing = +(headers.get("X-Stream-Total-Bytes") as string) - this.#received;
    const isAll = this.response?.status === 204 || missing <= 0;
    if (status === "cancelled") this.#finish("stopped");
    if (/^fa|^int/.test(status) && isAll) throw new ResumableError(`The stream has ${status}.`, { code: status });
    if (status === "completed" && isAll) this.#finish("done");
    throw new Error("Disconnected.");
  }

  async #recover(error: ResumableError) {
    this.#hangUp();
    if (this.#isOver || this.#isStopped) return;
    const { status, code, retryAfter } = error;
    // The application's own refusal of a start is final.
    const isRefusal = this.#place.start && status && !retryAfter && (code || [500, 501].includes(status));
    if (!this.#isRecorded || isRefusal || (status < 500 && !NOT_NOW.includes(status))) return this.#finish("lost", error);
    this.error = error;
    const pause = this.#timers.pause(retryAfter);
    this.#enter("reconnecting");
    await pause;
  }

  #hangUp() {
    this.#timers.unwatch();
    this.#body = undefined;
    this.#connection.abort();
  }

  #watch() {
    const connection = this.#connection;
    this.#timers.watch(() => connection.abort(), this.#isStopped ? STOP_PATIENCE : this.#options.silence);
  }

  /**
   * End the pause and reconnect, or replace a connection that has been silent for so many milliseconds. A pause that a
   * `Retry-After` asks for is kept.
   */
  #reconnectNow(silence: number) {
    const timers = this.#timers;
    if (timers.endPause ? (this.error as ResumableError).retryAfter : !timers.isSilent(silence)) return;
    timers.skipPause();
    this.#connection.abort();
  }

  #finish(state: StreamState, error: unknown = null) {
    if (this.#isOver) return;
    this.#isOver = true;
    this.error = error;
    this.#hangUp();
    this.#pageListeners.abort();
    this.#timers.endPause?.();
    if (state !== "detached") this.#savePlace(null);
    this.#enter(state);
  }

  #enter(state: StreamState) {
    if (this.state === state) return;
    this.state = state;
    this.dispatchEvent(new Event("statechange"));
  }

  #savePlace(place: Place | null = this.#place) {
    // A request that cannot be repeated is of no use to another page, nor is an answer that is not recorded.
    if (this.#place.again !== false) keep(this.#isRecorded ? place : null, this.#options);
  }
}

/**
 * Streams that outlive their connection.
 *
 * ```js
 * const stream = resumable("/chat", { method: "POST", body: JSON.stringify({ prompt }), key: "chat" });
 * for await (const event of stream) show(event.data);
 * ```
 *
 * @packageDocumentation
 */

/** How a request is made: what `fetch` takes, and where it goes. */
export interface RequestOptions extends Omit<RequestInit, "body" | "method"> {
  /**
   * Path of the router's routes, for what is asked for by id. By default the path that this module was served from, or
   * `/v1` if it came from elsewhere. Outside of browsers it has to be a whole URL.
   */
  prefix?: string;
  /** Used in the place of the global `fetch`, for every request. It may add a fresh token, say. */
  fetch?: typeof globalThis.fetch;
}

/** How a stream is followed. */
export interface FollowOptions extends RequestOptions {
  /** The name under which the stream is kept for a reload. Without it, nothing is kept. */
  key?: string;
  /** Where it is kept. By default `sessionStorage`: for one tab, until that is closed. */
  store?: Store;
  /**
   * After how many milliseconds without a byte a connection counts as dead. Default 40,000: the server sends a
   * keep-alive every 15 seconds, unless its `ping` says otherwise.
   */
  silence?: number;
  /** The back-off before the first retry, in milliseconds; it doubles with each one that fails. Default 500. */
  minDelay?: number;
  /** The longest back-off, in milliseconds. Default 15,000. */
  maxDelay?: number;
  /** A number from 0 to 1, for the jitter: each pause is `random()` times the back-off. For tests. */
  random?: () => number;
  /** What tells the time, in the place of `globalThis`. For tests. */
  clock?: Clock;
}

/** How a stream is started. */
export interface StartOptions extends FollowOptions {
  method?: string;
  /** Has to be one that can be sent again. Only text can be sent again after a reload. */
  body?: string | FormData | Blob | URLSearchParams | ArrayBuffer | ArrayBufferView<ArrayBuffer> | null;
  /**
   * The stream id. By default the request's `X-Conversation-Id`, or else a random one. It goes out in that header; an
   * app that finds its ids elsewhere in the request needs the same id there and here.
   */
  id?: string;
}

/** Where a stream is taken up. */
export interface ResumeOptions extends FollowOptions {
  /** The offset in bytes to begin at. Default 0: the start. */
  from?: number;
  /** The epoch that is meant. If a newer request has replaced it, the stream is `lost`. */
  epoch?: string;
}

/** What `sessionStorage` and `localStorage` have; the functions may return promises. */
export interface Store {
  getItem(name: string): string | null | Promise<string | null>;
  setItem(name: string, value: string): void | Promise<void>;
  removeItem(name: string): void | Promise<void>;
}

/** What a stream needs of `globalThis` to tell the time. */
export interface Clock {
  // eslint-disable-next-line @typescript-eslint/no-explicit-any
  setTimeout(callback: () => void, ms: number): any;
  // eslint-disable-next-line @typescript-eslint/no-explicit-any
  clearTimeout(timer: any): void;
  performance: { now(): number };
}

/** A server-sent event. */
export interface StreamEvent {
  /** The `event:` field; `message` if there is none. */
  type: string;
  /** The `data:` lines, joined by line feeds. */
  data: string;
  /** The `id:` field; empty if there is none. */
  id: string;
}

/**
 * - `connecting`: the request is on its way.
 * - `open`: connected; the stream comes in.
 * - `reconnecting`: the connection was lost; `error` says how. It will be open again, or over.
 * - `done`: it has ended, and all of it came.
 * - `stopped`: it was stopped.
 * - `lost`: it failed, was replaced by a newer request, or cannot be reached any more; `error` says why.
 * - `detached`: it is not followed any more; it goes on at the server.
 */
export type StreamState = "connecting" | "open" | "reconnecting" | "done" | "stopped" | "lost" | "detached";

/**
 * One stream, over however many connections. It is read once, in one of three ways; each ends when the stream is
 * `done`, `stopped` or `detached`, and throws when it is `lost` or its `signal` is aborted. To break out of the loop is
 * to detach. It dispatches `statechange`.
 */
export interface ResumableStream<Saved = unknown> extends EventTarget, AsyncIterable<StreamEvent> {
  readonly state: StreamState;
  /** The last failure, until the stream ended well. */
  readonly error: unknown;
  /** The latest response, for its headers; its body is taken. */
  readonly response: Response | null;
  readonly id: string;
  /** Which run of the id this is; known once the stream is `open`. */
  readonly epoch: string | undefined;
  /** How many bytes of the stream have been handed out: where `resume(id, { from: offset, epoch })` goes on. */
  readonly offset: number;
  /** What was last given to `save`, by the page before the reload too. */
  readonly saved: Saved | undefined;

  /** The stream as text. A character that was sent in pieces comes whole. */
  text(): AsyncGenerator<string, void, void>;
  /** The stream as bytes. */
  bytes(): AsyncGenerator<Uint8Array<ArrayBuffer>, void, void>;

  /**
   * Keep the place up to which the stream was handed out, and with it what was made of it so far, as JSON. After a
   * reload it continues from there; without a saved place, from the start. Call it now and then, or on `pagehide`.
   */
  save(value: Saved): void;
  /**
   * Stop the generation at the server, for everybody, if it is not `done`. Rejects if the server was not reached.
   * Until its answer begins, the epoch is not known, so it stops whatever has the id then.
   */
  stop(): Promise<void>;
  /** Stop following. The generation goes on. */
  detach(): void;

  addEventListener(
    type: "statechange",
    listener: ((this: ResumableStream<Saved>, event: Event) => unknown) | EventListenerObject | null,
    options?: AddEventListenerOptions | boolean,
  ): void;
}

/** What a lookup tells of a stream. */
export interface StreamItem {
  conversation_id: string;
  status: "queued" | "in_progress" | "completed" | "failed" | "cancelled" | "interrupted";
  is_done: boolean;
  epoch: string;
  total_bytes: number;
  dropped_bytes: number;
  content_type: string | null;
  /** Unix seconds. */
  started_at: number;
  /** Unix seconds; 0 while the stream is live. */
  completed_at: number;
}

/** An answer of the server's that is final: a refusal, or how the stream failed. */
export class ResumableError extends Error {
  constructor(message?: string, about?: Partial<Pick<ResumableError, "status" | "code" | "detail" | "retryAfter">>);
  /** The HTTP status; 0 if the stream itself said so. */
  status: number;
  /** The server's code, like `stream_not_found`; empty if it gave none. */
  code: string;
  /** The `detail` of the server's answer. */
  detail?: unknown;
  /** Milliseconds. */
  retryAfter?: number;
}

/**
 * Start a stream. The request is sent at once, with an `X-Conversation-Id` and an `Idempotency-Key` if it has none; if
 * no answer comes it is sent again, and the key sees to it that the endpoint runs once.
 *
 * @throws TypeError for what `fetch` would not send.
 */
export function resumable<Saved = unknown>(url: string | URL, options?: StartOptions): ResumableStream<Saved>;

/** Follow a stream that somebody has started. */
export function resume<Saved = unknown>(id: string, options?: ResumeOptions): ResumableStream<Saved>;

/**
 * Go on, after a reload, with the stream that was kept under `key`; `null` if there is none, or it is over. Give it
 * the same options as before: credentials are not kept.
 */
export function restore<Saved = unknown>(key: string, options?: FollowOptions): Promise<ResumableStream<Saved> | null>;

/** Stop a stream at the server, whether it is followed or not. With an `epoch`, any other one is left alone. */
export function stop(id: string, options?: RequestOptions & { epoch?: string }): Promise<void>;

/**
 * What the server knows of these streams, and of their variants (`id::anything`). Calls in one tick that have the same
 * `options` object, or none, share a request.
 */
export function lookup(ids: Iterable<string>, options?: RequestOptions): Promise<StreamItem[]>;

/** Timers: the pause before the next attempt, and the watch over a connection on which nothing comes. */

import type { Clock, FollowOptions } from "../resumable.js";

/** The longest pause that a server may ask for: an hour. */
const LONGEST_DELAY = 3_600_000;

/** A timer of more milliseconds than this fires at once. */
const LONGEST_TIMER = 2 ** 31 - 1;

/** A page that becomes visible again replaces a connection on which nothing has come for so many milliseconds. */
export const SUSPICIOUS_SILENCE = 20_000;

/**
 * After a stop, a connection on which nothing has come for so many milliseconds is closed. A stop that came before its
 * request is repeated when the head comes, which the server holds back for `head_timeout`: 1 s by default.
 */
export const STOP_PATIENCE = 3000;

/** What a server asks for as a pause, as a number from 0 to `LONGEST_DELAY`. */
export function clipDelay(ms: number) {
  return Math.max(0, Math.min(ms, LONGEST_DELAY)) || 0;
}

export class Timers {
  /** The pause that the stream asks for in its `retry:` field, in milliseconds. */
  retry = 0;
  failures = 0;
  #options: FollowOptions;
  #clock: Clock;
  #timer: unknown;
  /** When the watch began, or the last byte came; `NaN` while nothing is watched. */
  #lastHeard = NaN;
  /** Ends the pause; `undefined` if there is none. */
  endPause: (() => void) | undefined;
  /** Whether the next pause is left out. */
  #skipsPause = false;

  constructor(options: FollowOptions) {
    this.#options = options;
    this.#clock = options.clock ?? globalThis;
  }

  #set(callback: () => void, ms: number) {
    this.#timer = this.#clock.setTimeout(callback, Math.min(ms, LONGEST_TIMER));
  }

  /** Call `giveUp` after `ms` milliseconds, unless `watch` or `unwatch` is called before. */
  watch(giveUp: () => void, ms?: number) {
    this.unwatch();
    this.#lastHeard = this.#clock.performance.now();
    this.#set(giveUp, ms || 40_000);
  }

  /** End the watch. */
  unwatch() {
    this.#clock.clearTimeout(this.#timer);
    this.#lastHeard = NaN;
  }

  /** Whether a connection is watched, and nothing has come on it for `ms` milliseconds. */
  isSilent(ms: number) {
    return this.#clock.performance.now() - this.#lastHeard >= ms;
  }

  /** Pause before the next attempt: what the server asks for, and on top a random part of a growing back-off. */
  pause(asked: number | undefined): Promise<void> {
    const { minDelay = 500, maxDelay = 15_000, random = Math.random } = this.#options;
    const backOff = random() * Math.min(maxDelay, minDelay * 2 ** this.failures++);
    return new Promise((resolve) => {
      const end = () => {
        this.endPause = undefined;
        if (this.#skipsPause) this.failures = 0;
        this.#skipsPause = false;
        resolve();
      };
      this.#set(end, backOff + (asked || this.retry));
      this.endPause = end;
      if (this.#skipsPause) end();
    });
  }

  /** End this pause; if there is none, leave the next one out. */
  skipPause() {
    this.#skipsPause = true;
    this.endPause?.();
  }
}

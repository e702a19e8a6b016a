/** Timers: the pause before the next attempt, and the watch over a connection on which nothing comes. */

import type { Clock, FollowOptions } from "../resumable.js";

/** A delay that a server names is waited for up to an hour. */
const LONGEST_DELAY = 3_600_000;

/** A timer above this fires at once. */
const LONGEST_TIMER = 2 ** 31 - 1;

/** A delay that a server has named: not negative, a number, and not too long. */
export function clip(ms: number) {
  return Math.max(0, Math.min(ms, LONGEST_DELAY)) || 0;
}

export class Timers {
  /** What the stream's `retry:` field asks for. */
  retry = 0;
  failures = 0;
  #options: FollowOptions;
  #clock: Clock;
  #timer: unknown;
  #heard = NaN;
  #endPause: (() => void) | undefined;
  #hurry = false;

  constructor(options: FollowOptions) {
    this.#options = options;
    this.#clock = options.clock ?? globalThis;
  }

  #set(callback: () => void, ms: number) {
    this.#timer = this.#clock.setTimeout(callback, Math.min(ms, LONGEST_TIMER));
  }

  /** Call `giveUp` unless a byte comes in time, which begins the watch anew. */
  watch(giveUp: () => void, ms = this.#options.silence ?? 40_000) {
    this.rest();
    this.#heard = this.#clock.performance.now();
    this.#set(giveUp, ms);
  }

  /** Watch no more: nothing is waited for. */
  rest() {
    this.#clock.clearTimeout(this.#timer);
    this.#heard = NaN;
  }

  /** Whether a connection is being watched on which nothing has come for so long. */
  isSilent(ms: number) {
    return this.#clock.performance.now() - this.#heard >= ms;
  }

  get isPausing() {
    return !!this.#endPause;
  }

  /** Begin the pause before the next attempt: full jitter over a back-off, on top of what the server asks for. */
  pause(asked: number | undefined): Promise<void> {
    const { minDelay = 500, maxDelay = 15_000, random = Math.random } = this.#options;
    const backOff = Math.min(maxDelay, minDelay * 2 ** this.failures++);
    return new Promise((resolve) => {
      const end = () => {
        this.#endPause = undefined;
        if (this.#hurry) this.failures = 0;
        this.#hurry = false;
        resolve();
      };
      this.#set(end, random() * backOff + (asked || this.retry));
      this.#endPause = end;
      if (this.#hurry) end();
    });
  }

  endPause() {
    this.#endPause?.();
  }

  /** End this pause, or else the next one. */
  hurry() {
    this.#hurry = true;
    this.endPause();
  }
}

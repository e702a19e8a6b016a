// A line that can be cut, for demonstration. Code that uses its `fetch` only notices that the network fails now and then.

import { showWorkers } from "./workers.js";

export class Line {
  #deadUntil = 0;
  #connection = null;

  /** Like the real one, but when the line is cut, its connection is closed, and new ones fail for a while. A stop works. */
  fetch = (input, init = {}) => {
    if (init.method === "DELETE") return fetch(input, init);
    if (performance.now() < this.#deadUntil) return Promise.reject(new TypeError("The line is dead."));
    this.#connection = new AbortController();
    const signals = [init.signal, this.#connection.signal].filter(Boolean);
    return fetch(input, { ...init, signal: AbortSignal.any(signals) }).then(showWorkers);
  };

  /** Close the connection, and let new ones fail for `ms` milliseconds. */
  cut(ms) {
    this.#deadUntil = performance.now() + ms;
    this.#connection?.abort(new TypeError("The connection was cut."));
  }
}

// A line that can be cut, for demonstration. It hands out a `fetch`; its user notices only that, now and then,
// the network fails.

import { showWorkers } from "./workers.js";

export class Line {
  #dead = 0; // until when
  #connection = null;

  /** Like the real one; when the line is cut, the socket is closed and new ones fail for a while. To stop one can always. */
  fetch = (input, init = {}) => {
    if (init.method === "DELETE") return fetch(input, init);
    if (performance.now() < this.#dead) return Promise.reject(new TypeError("The line is dead."));
    this.#connection = new AbortController();
    const signals = [init.signal, this.#connection.signal].filter(Boolean);
    return fetch(input, { ...init, signal: AbortSignal.any(signals) }).then(showWorkers);
  };

  /** Drop the socket, and refuse connections for so many milliseconds. */
  cut(ms) {
    this.#dead = performance.now() + ms;
    this.#connection?.abort(new TypeError("The connection was cut."));
  }
}

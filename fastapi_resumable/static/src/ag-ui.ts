/** AG-UI's `HttpAgent`, whose runs outlive their connection. Documentation for its users: ../ag-ui.d.ts. */

import type { Agent, AgentClass, AgentOptions, RunInput } from "../ag-ui.js";
import { type ResumableError, type ResumableStream, resumable, resume } from "../resumable.js";

const read = Symbol();

/** The terminal event is within the last bytes of a log. */
const TAIL = 2048;

export function resumableAgent<Base extends AgentClass>(HttpAgent: Base, options: AgentOptions = {}) {
  const streams = new WeakMap<Agent, ResumableStream>(); // clones of an agent have no private fields
  const { streamId = (input: RunInput) => input.threadId, prefix, ...follow } = options;

  class ResumableAgent extends (HttpAgent as AgentClass) {
    /** Run the agent; a cut is not seen. */
    override run(input: RunInput) {
      return this[read](input, (init, how) => resumable(this.url, { ...init, ...how, id: streamId(input) }));
    }

    /** Follow the thread's latest run from its start, also one that has ended. */
    connect(input: RunInput) {
      const { headers } = this;
      return this[read](input, ({ signal }, how) => resume(streamId(input), { headers, signal, ...how }));
    }

    /** Stop the run at the server. `detachActiveRun` leaves it alone. */
    override abortRun() {
      const stream = streams.get(this);
      if (/ing|open/.test(stream?.state ?? "")) stream?.stop().catch(() => {}); // not one that has ended
      super.abortRun();
    }

    /** `HttpAgent` turns a response into events; this is where its response comes from. */
    [read](input: RunInput, open: (init: any, how: AgentOptions) => ResumableStream) {
      const { fetch } = this;
      const reader: Agent = Object.create(this, {
        fetch: {
          value: (_url: string, init: RequestInit) => {
            const stream = open(init, { ...follow, fetch, ...(prefix === undefined ? {} : { prefix }) });
            streams.set(this, stream);
            return respond(stream);
          },
        },
      });
      return super.run.call(reader, input);
    }
  }
  return ResumableAgent;
}

/** One response out of a stream, over all its connections. */
async function respond(stream: ResumableStream) {
  const bytes = stream.bytes();
  let next = await bytes.next(); // throws if the server refuses
  let tail = "";
  const body = new ReadableStream({
    async pull(controller) {
      if (next.done) return controller.close();
      controller.enqueue(next.value);
      tail = (tail + String.fromCharCode(...next.value.slice(-TAIL))).slice(-TAIL);
      try {
        next = await bytes.next();
      } catch (error) {
        // The agent has been told of a failure by the event that ends the log.
        if (!/"type": ?"RUN_ERROR"/.test(tail)) throw error as ResumableError;
        next = { done: true, value: undefined };
      }
    },
    cancel: () => stream.detach(),
  });
  return new Response(body, stream.response as Response);
}

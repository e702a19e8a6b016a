/**
 * AG-UI's `HttpAgent`, whose runs outlive their connection.
 *
 * ```js
 * import { HttpAgent } from "@ag-ui/client";
 * const ResumableAgent = resumableAgent(HttpAgent);
 * const agent = new ResumableAgent({ url: "/agent", threadId });
 * await agent.connectAgent(); // after a reload: the run that is live, or the last one
 * ```
 *
 * @packageDocumentation
 */

import type { FollowOptions } from "./resumable.js";

/** What is needed of AG-UI's `RunAgentInput`. */
export interface RunInput {
  threadId: string;
  runId: string;
}

/** What is needed of `HttpAgent`. */
export interface Agent {
  url: string;
  headers: Record<string, string>;
  fetch: typeof globalThis.fetch;
  // eslint-disable-next-line @typescript-eslint/no-explicit-any
  run(input: any): any;
  abortRun(): void;
}

// eslint-disable-next-line @typescript-eslint/no-explicit-any
export type AgentClass = new (...config: any[]) => Agent;

export interface AgentOptions extends Omit<FollowOptions, "key" | "store"> {
  /**
   * The stream id of a run, as the server finds it in the request. By default the thread's, for
   * `Resumable(stream_id=body_field("threadId"))`.
   */
  streamId?: (input: RunInput) => string;
}

/**
 * A subclass of `HttpAgent`. A cut in mid-run is not seen: every event comes once. `connectAgent()` follows the latest
 * run of the thread from its start. `abortRun()` stops the run at the server; `detachActiveRun()` leaves it running.
 */
export function resumableAgent<Base extends AgentClass>(HttpAgent: Base, options?: AgentOptions): Base;

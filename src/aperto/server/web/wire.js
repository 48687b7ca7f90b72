// The server's API: requests out, events of an answer in.

import { serverSentEvents } from "./sse.js";

/** A request that failed, in words for the user. */
export class ApiError extends Error {
  constructor(status, { message, code, type } = {}, retryAfterS = null) {
    super(message || "The server said no more.");
    this.status = status;
    this.code = code ?? null;
    this.type = type ?? null;
    this.retryAfterS = retryAfterS;
  }

  /** What is kept with the conversation. */
  record() {
    const { status, code, message, retryAfterS } = this;
    return { status, code, message, retryAfterS };
  }
}

/** The server behind this page. */
export class Api {
  constructor(key = "") {
    this.key = key;
  }

  /** The served models: [{id, context}], context in tokens or null. */
  async models() {
    const { data } = await (await this.#request("v1/models")).json();
    return data.map((model) => ({
      id: model.id,
      context: model.context_window ?? null,
      tools: model.tools ?? [],
    }));
  }

  /** The events of one answer; see `events` below. Throws ApiError. */
  async *answer(body, signal) {
    const response = await this.#request("v1/chat/completions", {
      method: "POST",
      body: JSON.stringify(body),
      signal,
    });
    let isOver = false;
    try {
      for await (const data of serverSentEvents(response.body)) {
        if (data === "[DONE]") isOver = true;
        else yield* events(JSON.parse(data));
      }
    } catch (error) {
      throw signal.aborted || error instanceof ApiError ? error : lost();
    }
    if (!isOver) throw lost();
  }

  async #request(path, options = {}) {
    const headers = { "Content-Type": "application/json" };
    if (this.key) headers.Authorization = `Bearer ${this.key}`;
    let response;
    try {
      response = await fetch(path, { ...options, headers, cache: "no-store" });
    } catch (error) {
      throw options.signal?.aborted ? error : new ApiError(0, { message: UNREACHABLE });
    }
    if (!response.ok) throw await failure(response);
    return response;
  }
}

const UNREACHABLE = "The server does not answer. Is it running, and is the network up?";

function lost() {
  return new ApiError(0, {
    code: "connection_lost",
    message: "The connection broke before the answer was whole. What came is kept.",
  });
}

async function failure(response) {
  const retryAfterS = Number(response.headers.get("Retry-After")) || null;
  let error = {};
  try {
    ({ error = {} } = await response.json());
  } catch {
    error = { message: `The server sent status ${response.status} without an explanation.` };
  }
  return new ApiError(response.status, error, retryAfterS);
}

/** A chunk of a chat completion as events {kind, ...}. */
function* events(chunk) {
  if (chunk.error) throw new ApiError(chunk.error.status ?? 500, chunk.error);
  for (const text of chunk.warnings ?? []) yield { kind: "warning", text };
  if (chunk.prefill) yield { kind: "prefill", ...chunk.prefill };
  if (chunk.tool) yield { kind: "tool", ...chunk.tool };
  const choice = chunk.choices?.[0];
  if (choice) yield* choiceEvents(choice);
  if (chunk.timings) yield { kind: "timings", timings: chunk.timings };
  if (chunk.usage) yield { kind: "usage", usage: chunk.usage };
}

function* choiceEvents({ delta = {}, logprobs, finish_reason: reason }) {
  const thought = delta.reasoning ?? delta.reasoning_content;
  if (thought) yield { kind: "reasoning", text: thought };
  if (delta.content) yield { kind: "text", text: delta.content };
  for (const call of delta.tool_calls ?? []) yield { kind: "call", ...call };
  if (logprobs?.content?.length) yield { kind: "tokens", tokens: logprobs.content };
  if (reason) yield { kind: "finish", reason };
}

/** The body of a request that answers the messages of `path`. */
export function requestBody(path, settings, seed) {
  const messages = settings.system ? [{ role: "system", content: settings.system }] : [];
  for (const node of path) {
    const content = node.role === "user" ? node.text : answerText(node);
    if (content) messages.push({ role: node.role, content });
  }
  const body = {
    model: settings.model,
    messages,
    stream: true,
    stream_options: { include_usage: true },
    reasoning_effort: settings.effort,
    seed,
  };
  for (const name of ["temperature", "top_p", "top_k", "min_p"]) {
    if (settings[name] !== null) body[name] = settings[name];
  }
  if (settings.max_tokens !== null) body.max_completion_tokens = settings.max_tokens;
  if (settings.logprobs) Object.assign(body, { logprobs: true, top_logprobs: 5 });
  if (settings.tools.length) body.tools = settings.tools.map((type) => ({ type }));
  return body;
}

/** What an answer says to the user. */
export function answerText(node) {
  return node.steps.filter(({ kind }) => kind === "text").map(({ text }) => text).join("\n\n");
}

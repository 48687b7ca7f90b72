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

  /** What is served: {models: [{id, context}], tools: [type]}; context in tokens or null. */
  async catalogue() {
    const { data, tools } = await (await this.#request("v1/models")).json();
    const models = data.map((model) => ({ id: model.id, context: model.context_window ?? null }));
    return { models, tools: tools ?? [] };
  }

  /** The events of one answer; see `read` below. Throws ApiError. */
  async *answer(body, signal) {
    const response = await this.#request("v1/responses", {
      method: "POST",
      body: JSON.stringify(body),
      signal,
    });
    let isOver = false;
    try {
      for await (const data of serverSentEvents(response.body)) {
        if (data === "[DONE]") isOver = true;
        else yield* read(JSON.parse(data));
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

const KINDS = { reasoning: "reasoning", message: "text", mcp_call: "call", function_call: "call" };

/** An event of the Responses API as events {kind, ...} of an answer. */
function* read(event) {
  const { type, item_id: id, delta, item, response } = event;
  if (type === "response.output_item.added" && KINDS[item.type]) {
    yield { kind: "open", step: KINDS[item.type], id: item.id, name: item.name, phase: item.phase };
  } else if (type === "response.output_item.done" && KINDS[item.type]) {
    yield { kind: "close", id: item.id, output: item.output ?? null };
  } else if (typeof delta === "string") {
    yield { kind: "delta", id, text: delta, tokens: event.logprobs ?? [] };
  }
  for (const text of response?.warnings ?? []) yield { kind: "warning", text };
  if (event.prefill) yield { kind: "prefill", ...event.prefill };
  if (response?.usage) yield { kind: "usage", usage: response.usage };
  if (response?.incomplete_details) yield { kind: "cut" };
  if (type === "response.failed") throw failed(response.error);
  if (type === "error") throw failed(event.error ?? event);
}

const STATUS = { context_length_exceeded: 400, invalid_prompt: 400, rate_limit_exceeded: 429 };

function failed(error) {
  return new ApiError(STATUS[error?.code] ?? 500, error ?? {});
}

/** The body of a request that answers the messages of `path`. */
export function requestBody(path, settings, seed) {
  const body = {
    model: settings.model,
    input: path.flatMap((node) => (node.role === "user" ? said(node) : answered(node))),
    reasoning: { effort: settings.effort },
    seed,
    store: false,
    stream: true,
  };
  if (settings.system) body.instructions = settings.system;
  for (const name of ["temperature", "top_p", "top_k", "min_p"]) {
    if (settings[name] !== null) body[name] = settings[name];
  }
  if (settings.max_tokens !== null) body.max_output_tokens = settings.max_tokens;
  if (settings.logprobs) body.top_logprobs = 5;
  if (settings.tools.length) body.tools = settings.tools.map((type) => ({ type }));
  return body;
}

function said({ text }) {
  return { type: "message", role: "user", content: text };
}

/** What later turns see of an answer: its text, and the calls that the server ran. */
function answered({ steps }) {
  return steps.flatMap(({ kind, id, name, text, phase, output }) => {
    if (kind === "text" && text) return { type: "message", role: "assistant", phase, content: text };
    if (kind !== "call" || output === null) return [];
    return { type: "mcp_call", id, server_label: "aperto", name, arguments: text, output };
  });
}

/** What an answer says to the user. */
export function answerText(node) {
  return node.steps.filter(({ kind }) => kind === "text").map(({ text }) => text).join("\n\n");
}

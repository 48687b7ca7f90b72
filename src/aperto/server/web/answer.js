// An answer as it grows: a plain record, kept in the browser, to which events are added.

/** A new record. `steps` are reasoning, calls and text in the order in which they came. */
export function newAnswer(settings) {
  return {
    role: "assistant",
    state: "running",
    model: settings.model,
    effort: settings.effort,
    started: Date.now(),
    steps: [],
    tokens: [],
    warnings: [],
    prefill: null,
    promptTokens: null,
    usage: null,
    timings: null,
    finish: null,
    // Drawn here where none is set, so that it is short and every answer can be had again.
    seed: settings.seed ?? crypto.getRandomValues(new Uint32Array(1))[0],
    error: null,
    numPieces: 0,
    firstPiece: null,
    lastPiece: null,
  };
}

/** Adds one event. */
export function absorb(answer, event, now = Date.now()) {
  const { kind } = event;
  if (kind === "reasoning" || kind === "text") addText(answer, event, now);
  else if (kind === "call") addCall(answer, event, now);
  else if (kind === "tool") addToolEvent(answer, event, now);
  else if (kind === "tokens") answer.tokens.push(...event.tokens.map(compactToken));
  else if (kind === "prefill") addPrefill(answer, event);
  else if (kind === "usage") answer.usage = event.usage;
  else if (kind === "finish") answer.finish = event.reason;
  else if (kind === "timings") answer.timings = event.timings;
  else if (kind === "warning" && !answer.warnings.includes(event.text)) answer.warnings.push(event.text);
}

function addPrefill(answer, { done_tokens: done, total_tokens: total }) {
  answer.prefill = { done, total };
  answer.promptTokens = total;
}

/** Closes the record: "done", "stopped", "interrupted" or "failed". */
export function close(answer, state, error = null, now = Date.now()) {
  closeStep(answer, now);
  answer.state = state;
  answer.error = error;
  answer.prefill = null;
}

function step(answer, kind, now) {
  const last = answer.steps.at(-1);
  if (last?.kind === kind && last.ended === null) return last;
  closeStep(answer, now);
  const fresh = { kind, text: "", started: now, ended: null };
  answer.steps.push(fresh);
  return fresh;
}

function closeStep(answer, now) {
  const last = answer.steps.at(-1);
  if (last && last.ended === null) last.ended = now;
}

function countPiece(answer, now) {
  answer.numPieces += 1;
  answer.firstPiece ??= now;
  answer.lastPiece = now;
  answer.prefill = null;
}

function addText(answer, { kind, text }, now) {
  countPiece(answer, now);
  step(answer, kind, now).text += text;
}

/** A piece of a call that the model writes, in the protocol's form. */
function addCall(answer, { index, id, function: called = {} }, now) {
  countPiece(answer, now);
  // The first piece has the id; the others only the index, which later rounds use again.
  let call = id ? null : answer.steps.findLast((item) => item.index === index);
  if (!call) {
    call = step(answer, `call ${index}`, now);
    Object.assign(call, { kind: "call", index, id, name: "", text: "", output: null });
  }
  call.name += called.name ?? "";
  call.text += called.arguments ?? "";
}

/** A call that the server runs: first without, then with its output. */
function addToolEvent(answer, { id, name, arguments: text, output }, now) {
  let call = answer.steps.findLast((item) => item.kind === "call" && item.id === id);
  if (!call) {
    call = step(answer, `call ${id}`, now);
    Object.assign(call, { kind: "call", id, name, text, output: null });
  }
  if (output === undefined || output === null) return;
  call.output = output;
  call.ended = now;
}

/** [text or bytes, logprob, [[text, logprob], ...]]: small enough to be kept by the thousand. */
function compactToken({ token, bytes, logprob, top_logprobs: top }) {
  const isPartial = bytes && token.includes("\ufffd");
  return [isPartial ? bytes : token, logprob, (top ?? []).map((other) => [other.token, other.logprob])];
}

/** Tokens a second: the server's figure, or while the answer runs that of what came so far. */
export function speed({ timings, numPieces, firstPiece, lastPiece }) {
  if (timings?.tokens_per_s) return timings.tokens_per_s;
  if (numPieces < 3 || lastPiece - firstPiece < 200) return null;
  return ((numPieces - 1) / (lastPiece - firstPiece)) * 1000;
}

/** Tokens of the conversation up to this answer; while it runs `before` counts its prompt. */
export function contextTokens(answer, before) {
  if (answer.usage) return answer.usage.prompt_tokens + answer.usage.completion_tokens;
  return before + answer.numPieces;
}

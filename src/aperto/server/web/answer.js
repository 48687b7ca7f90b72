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
    isCut: false,
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
  if (kind === "open") openStep(answer, event, now);
  else if (kind === "delta") addText(answer, event, now);
  else if (kind === "close") closeStep(find(answer, event.id), event.output, now);
  else if (kind === "prefill") addPrefill(answer, event);
  else if (kind === "usage") answer.usage = event.usage;
  else if (kind === "cut") answer.isCut = true;
  else if (kind === "warning" && !answer.warnings.includes(event.text)) answer.warnings.push(event.text);
}

/** Closes the record: "done", "stopped", "interrupted" or "failed". */
export function close(answer, state, error = null, now = Date.now()) {
  for (const step of answer.steps) closeStep(step, step.output, now);
  answer.state = state;
  answer.error = error;
  answer.prefill = null;
}

function openStep(answer, { step, id, name = "", phase }, now) {
  answer.steps.push({ kind: step, id, name, phase, text: "", output: null, started: now, ended: null });
}

function find(answer, id) {
  return answer.steps.findLast((step) => step.id === id);
}

function closeStep(step, output, now) {
  step.ended ??= now;
  step.output = output;
}

function addText(answer, { id, text, tokens }, now) {
  answer.numPieces += 1;
  answer.firstPiece ??= now;
  answer.lastPiece = now;
  answer.prefill = null;
  find(answer, id).text += text;
  answer.tokens.push(...tokens.map(compactToken));
}

function addPrefill(answer, { done_tokens: done, total_tokens: total }) {
  answer.prefill = { done, total };
  answer.promptTokens = total;
}

/** [text or bytes, logprob, [[text, logprob], ...]]: small enough to be kept by the thousand. */
function compactToken({ token, bytes, logprob, top_logprobs: top }) {
  const isPartial = bytes && token.includes("\ufffd");
  return [isPartial ? bytes : token, logprob, (top ?? []).map((other) => [other.token, other.logprob])];
}

/** Tokens a second while tokens came; null before there are enough to tell. */
export function speed({ numPieces, firstPiece, lastPiece }) {
  if (numPieces < 3 || lastPiece - firstPiece < 200) return null;
  return ((numPieces - 1) / (lastPiece - firstPiece)) * 1000;
}

/** Tokens of the conversation up to this answer; while it runs `before` counts its prompt. */
export function contextTokens(answer, before) {
  if (answer.usage) return answer.usage.input_tokens + answer.usage.output_tokens;
  return before + answer.numPieces;
}

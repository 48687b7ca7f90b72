// The line below the message field: speed, and how full the context is.

import { contextTokens, speed } from "./answer.js";

const NUMBER = new Intl.NumberFormat("en");
// Rough, for what the server has not counted yet.
const CHARS_PER_TOKEN = 4;

/** Shows figures of the shown messages. */
export class Gauges {
  #speed;
  #box;
  #meter;
  #text;

  constructor({ speed: speedText, box, meter, text }) {
    this.#speed = speedText;
    this.#box = box;
    this.#meter = meter;
    this.#text = text;
  }

  /** Args: the path of messages; the model's context in tokens, or null. */
  show(path, limit) {
    const answer = path.findLast(({ role }) => role === "assistant");
    const rate = answer?.state === "running" ? speed(answer) : null;
    this.#speed.textContent = rate
      ? `${rate.toFixed(1)} tokens/s · ${NUMBER.format(answer.numPieces)} tokens`
      : "";
    const used = usedTokens(path);
    this.#box.hidden = used === 0;
    const about = answer?.usage ? "" : "about ";
    this.#text.textContent = limit
      ? `${about}${NUMBER.format(used)} of ${NUMBER.format(limit)} tokens`
      : `${about}${NUMBER.format(used)} tokens`;
    this.#meter.hidden = !limit;
    if (!limit) return;
    Object.assign(this.#meter, { max: limit, high: 0.8 * limit, optimum: 0, value: used });
  }
}

/** Tokens of a path: counted by the server where it has, else estimated. */
function usedTokens(path) {
  let used = 0;
  for (const node of path) {
    if (node.role === "user") used += Math.ceil(node.text.length / CHARS_PER_TOKEN);
    else used = contextTokens(node, node.promptTokens ?? used);
  }
  return used;
}

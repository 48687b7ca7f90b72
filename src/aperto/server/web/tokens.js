// An answer's tokens, coloured by how sure the model was, with the alternatives it saw.

import { h } from "./dom.js";

// Lower bounds of probability for shades 0 (sure) to 4 (a guess).
const SHADES = [0.9, 0.6, 0.3, 0.1, 0];

const tip = h("div", { class: "tip", role: "tooltip", id: "token-tip", popover: "manual" });

/** A view of tokens [text or bytes, logprob, alternatives]; grows with `update`. */
export class TokensView {
  #tokens = [];
  #spans = [];
  #decoder = new TextDecoder();
  #at = -1;
  #text = h("div", {
    class: "tokens", tabIndex: 0, role: "group",
    "aria-label": "Tokens by probability; arrow keys move", "aria-describedby": tip.id,
  });

  constructor() {
    this.node = h("div", {}, legend(), this.#text);
    this.#text.addEventListener("pointerover", (event) => this.#point(event));
    this.#text.addEventListener("pointerdown", (event) => this.#point(event));
    this.#text.addEventListener("pointerleave", () => this.hide());
    this.#text.addEventListener("keydown", (event) => this.#key(event));
    this.#text.addEventListener("blur", () => this.hide());
  }

  /** Appends what is new in `tokens`. */
  update(tokens) {
    const fresh = tokens.slice(this.#tokens.length).map((token) => this.#span(token));
    this.#tokens.push(...tokens.slice(this.#tokens.length));
    this.#spans.push(...fresh);
    this.#text.append(...fresh);
  }

  /** Closes the tooltip. */
  hide() {
    if (this.#at < 0) return;
    this.#spans[this.#at].classList.remove("at");
    this.#at = -1;
    tip.hidePopover();
  }

  #span([piece, logprob]) {
    const shade = SHADES.findIndex((bound) => Math.exp(logprob) >= bound);
    // Bytes that end no character yet show up with the token that ends it.
    const text = typeof piece === "string" ? piece : this.#decoder.decode(new Uint8Array(piece), { stream: true });
    return h("span", { class: `token p${shade}` }, text);
  }

  #point({ target }) {
    const index = this.#spans.indexOf(target.closest(".token"));
    if (index >= 0) this.#show(index);
  }

  #key(event) {
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape" && this.#at >= 0) {
      event.stopPropagation();
      this.hide();
    } else if (move) {
      event.preventDefault();
      const last = this.#spans.length - 1;
      this.#show(Math.min(Math.max(this.#at + move, 0), last));
    }
  }

  #show(index) {
    if (index === this.#at) return;
    this.hide();
    this.#at = index;
    const span = this.#spans[index];
    span.classList.add("at");
    tip.replaceChildren(...tipRows(this.#tokens[index]));
    if (!tip.isConnected) document.body.append(tip);
    tip.showPopover();
    place(span.getClientRects()[0] ?? span.getBoundingClientRect());
  }
}

function tipRows([piece, logprob, others]) {
  const own = visible(piece);
  const rows = others.some(([text]) => visible(text) === own) ? others : [[piece, logprob], ...others];
  return rows.map(([text, value]) => {
    const shown = visible(text);
    return h(
      "div",
      { class: shown === own ? "row own" : "row" },
      h("code", {}, shown),
      h("meter", { min: 0, max: 1, value: Math.exp(value), "aria-hidden": "true" }),
      h("span", {}, percent(value)),
    );
  });
}

function visible(piece) {
  if (typeof piece !== "string") return piece.map((byte) => `\\x${byte.toString(16).padStart(2, "0")}`).join("");
  return piece.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "·") || "∅";
}

function percent(logprob) {
  const value = 100 * Math.exp(logprob);
  if (value < 0.01) return "<0.01 %";
  return `${value.toFixed(value < 1 ? 2 : 1)} %`;
}

function place(rect) {
  const { width, height } = tip.getBoundingClientRect();
  const left = Math.min(Math.max(rect.left, 8), innerWidth - width - 8);
  const below = rect.bottom + 6;
  const top = below + height < innerHeight ? below : rect.top - height - 6;
  tip.style.left = `${left}px`;
  tip.style.top = `${top}px`;
}

function legend() {
  const words = ["≥ 90 %", "≥ 60 %", "≥ 30 %", "≥ 10 %", "less"];
  const key = words.map((word, shade) => h("span", { class: `token p${shade}` }, word));
  return h("p", { class: "legend", "aria-label": "Probability of each token" }, key);
}

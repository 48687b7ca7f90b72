// Parts of an answer: reasoning, calls of tools, text.

import { copyButton, h, icon } from "./dom.js";
import { Prose } from "./markdown.js";

/** A view of one step of an answer. */
export function stepView(step) {
  if (step.kind === "reasoning") return new ReasoningView();
  return step.kind === "call" ? new CallView(step) : new TextView();
}

/** "12 s" or "1 min 5 s". */
export function duration(ms) {
  const seconds = Math.round(ms / 1000);
  return seconds < 60 ? `${seconds} s` : `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
}

/** What a closed reasoning is called. */
export function thought(ms) {
  return ms < 1000 ? "Thought for a moment" : `Thought for ${duration(ms)}`;
}

class TextView {
  node = h("div", { class: "prose" });
  #prose = new Prose(this.node);

  update({ text }, isRunning) {
    this.#prose.update(text, !isRunning);
  }
}

class ReasoningView {
  #label = h("span");
  #body = h("div", { class: "prose" });
  #prose = new Prose(this.#body);
  #step = null;
  #isRunning = false;

  constructor() {
    const summary = h("summary", {}, icon("right"), this.#label);
    this.node = h("details", { class: "reasoning" }, summary, this.#body);
    this.node.addEventListener("toggle", () => this.#draw());
  }

  update(step, isRunning) {
    this.#step = step;
    this.#isRunning = isRunning;
    const isThinking = isRunning && step.ended === null;
    const ms = (step.ended ?? Date.now()) - step.started;
    this.#label.textContent = isThinking ? `Thinking… ${duration(ms)}` : thought(ms);
    this.node.classList.toggle("live", isThinking);
    this.#draw();
  }

  /** Folded reasoning costs nothing. */
  #draw() {
    if (this.node.open) this.#prose.update(this.#step.text, !this.#isRunning);
  }
}

class CallView {
  #state = h("span", { class: "state" });
  #input = h("pre", { tabIndex: 0 });
  #output = h("pre", { tabIndex: 0 });
  #outputBox = h("div", { class: "output" }, h("h4", {}, "Result"), this.#output);

  constructor(step) {
    const name = h("code", {}, step.name);
    this.node = h(
      "details",
      { class: "call" },
      h("summary", {}, icon("tool"), name, this.#state),
      h("div", { class: "input" }, h("h4", {}, "Call", copyButton(() => step.text)), this.#input),
      this.#outputBox,
    );
    this.name = name;
  }

  update(step, isRunning) {
    const isWaiting = step.output === null && isRunning;
    this.name.textContent = step.name;
    this.#state.textContent = isWaiting ? "running…" : step.output === null ? "not run" : "";
    this.node.classList.toggle("live", isWaiting);
    this.#input.textContent = readable(step.text);
    this.#output.textContent = step.output ?? "";
    this.#outputBox.hidden = step.output === null;
  }
}

/** JSON spread over lines, where that is easier to read. */
function readable(text) {
  try {
    const value = JSON.parse(text);
    // A lone string, such as a program, is easier to read as it is.
    const parts = Object.values(value);
    if (parts.length === 1 && typeof parts[0] === "string" && parts[0].includes("\n")) return parts[0];
    return JSON.stringify(value, null, 2);
  } catch {
    return text;
  }
}

// The field in which the user writes, with effort and the send button.

import { h, icon, relabel } from "./dom.js";
import { EFFORTS } from "./settings.js";

const LABELS = { none: "None", low: "Low", medium: "Medium", high: "High" };
const TALLEST_PX = 260;
// A touch keyboard has no Shift+Enter: there Enter begins a line and the button sends.
const touch = matchMedia("(pointer: coarse)");

/** Actions: send(text), stop(), effort(name), editLast(). */
export class Composer {
  #form;
  #input;
  #send;
  #efforts;
  #actions;
  #isRunning = false;

  constructor({ form, input, send, efforts }, actions) {
    this.#form = form;
    this.#input = input;
    this.#send = send;
    this.#efforts = efforts;
    this.#actions = actions;
    efforts.append(h("span", { class: "caption", "aria-hidden": "true" }, "Reasoning"), ...EFFORTS.map((name) => this.#effort(name)));
    send.append(icon("arrow"));
    form.addEventListener("submit", (event) => this.#submit(event));
    input.addEventListener("keydown", (event) => this.#key(event));
    input.addEventListener("input", () => this.#changed());
    this.#changed();
  }

  /** What is written. */
  get text() {
    return this.#input.value;
  }

  set text(text) {
    this.#input.value = text;
    this.#changed();
  }

  focus() {
    this.#input.focus();
  }

  /** Shows an effort, and whether an answer is under way. */
  show({ effort, isRunning }) {
    this.#isRunning = isRunning;
    for (const input of this.#efforts.querySelectorAll("input")) input.checked = input.value === effort;
    relabel(this.#send, isRunning ? "stop" : "arrow", isRunning ? "Stop (Esc)" : "Send (Enter)");
    this.#changed();
  }

  #effort(name) {
    const input = h("input", {
      type: "radio", name: "effort", value: name,
      on: { change: () => this.#actions.effort(name) },
    });
    return h("label", { title: `Reasoning effort: ${name}` }, input, h("span", {}, LABELS[name]));
  }

  #submit(event) {
    event.preventDefault();
    if (this.#isRunning) {
      this.#actions.stop();
      return;
    }
    const text = this.#input.value.trim();
    if (!text) return;
    this.text = "";
    this.#actions.send(text);
  }

  #key(event) {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing && !touch.matches) {
      event.preventDefault();
      if (!this.#isRunning) this.#form.requestSubmit();
    } else if (event.key === "ArrowUp" && !this.#input.value && !this.#isRunning) {
      event.preventDefault();
      this.#actions.editLast();
    }
  }

  #changed() {
    this.#input.style.height = "auto";
    this.#input.style.height = `${Math.min(this.#input.scrollHeight, TALLEST_PX)}px`;
    this.#send.disabled = !this.#isRunning && !this.#input.value.trim();
  }
}

// Views of a user's message and of an answer.

import { answerText } from "./wire.js";
import { speed } from "./answer.js";
import { button, copyButton, h, icon } from "./dom.js";
import { errorCard } from "./errors.js";
import { stepView } from "./steps.js";
import { TokensView } from "./tokens.js";

const NUMBER = new Intl.NumberFormat("en");

/** ‹ 2 / 3 › where a message has alternatives. */
function alternatives(node, { list, show }) {
  const all = list(node);
  if (all.length < 2) return null;
  const at = all.indexOf(node);
  const step = (name, label, index) =>
    button(name, label, () => show(all[index]), { disabled: !all[index] });
  return h(
    "span",
    { class: "alternatives" },
    step("left", "Previous version", at - 1),
    h("span", { "aria-label": `Version ${at + 1} of ${all.length}` }, `${at + 1}/${all.length}`),
    step("right", "Next version", at + 1),
  );
}

/** What the user wrote; it can be edited. Actions: list, show, edit(node, text). */
export class UserView {
  #actions;
  #bar = h("div", { class: "bar" });
  #body = h("div", { class: "said" });

  constructor(node, actions) {
    this.data = node;
    this.#actions = actions;
    const label = h("h2", { class: "offscreen" }, "You");
    this.node = h("article", { class: "message user" }, label, this.#body, this.#bar);
    this.#body.textContent = node.text;
  }

  update() {
    this.#bar.replaceChildren(
      ...[
        alternatives(this.data, this.#actions),
        copyButton(() => this.data.text),
        button("pencil", "Edit", () => this.edit()),
      ].filter(Boolean),
    );
  }

  remove() {
    this.node.remove();
  }

  /** Turns the message into a field; sending it starts another version. */
  edit() {
    if (this.node.querySelector("form")) return;
    const area = h("textarea", { value: this.data.text, rows: 3, "aria-label": "Edit message" });
    const form = h(
      "form",
      { class: "edit" },
      area,
      h("div", {},
        h("button", { type: "button", class: "plain", on: { click: () => this.#endEdit(form) } }, "Cancel"),
        h("button", { type: "submit", class: "primary" }, "Send")),
    );
    const send = (event) => {
      event.preventDefault();
      const text = area.value.trim();
      if (!text) return;
      this.#endEdit(form);
      this.#actions.edit(this.data, text);
    };
    form.addEventListener("submit", send);
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        this.#endEdit(form);
      } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send(event);
    });
    this.#body.hidden = this.#bar.hidden = true;
    this.node.append(form);
    area.focus();
    area.setSelectionRange(area.value.length, area.value.length);
  }

  #endEdit(form) {
    form.remove();
    this.#body.hidden = this.#bar.hidden = false;
    this.#bar.lastElementChild?.focus();
  }
}

/** What the model answered. Actions: list, show, again(node). */
export class AnswerView {
  #actions;
  #bar = h("div", { class: "bar" });
  #facts = h("span", { class: "facts" });
  #steps = [];
  #body = h("div", { class: "steps" });
  #wait = h("p", { class: "wait" });
  #notes = h("div", { class: "notes" });
  #tokens = null;
  #toggle = null;
  #barKey = "";

  constructor(node, actions) {
    this.data = node;
    this.#actions = actions;
    const label = h("h2", { class: "offscreen" }, `Answer of ${node.model}`);
    this.node = h("article", { class: "message answer" }, label, this.#body, this.#wait, this.#notes, this.#bar);
  }

  update() {
    const node = this.data;
    const isRunning = node.state === "running";
    node.steps.forEach((step, index) => {
      if (!this.#steps[index]) {
        this.#steps[index] = stepView(step);
        this.#body.append(this.#steps[index].node);
      }
      this.#steps[index].update(step, isRunning);
    });
    this.#tokens?.update(node.tokens);
    this.node.classList.toggle("running", isRunning);
    this.#showWait(isRunning);
    this.#showBar(isRunning);
  }

  remove() {
    this.#tokens?.hide();
    this.node.remove();
  }

  #showWait(isRunning) {
    const { steps, prefill } = this.data;
    const isWaiting = isRunning && (steps.length === 0 || prefill !== null);
    this.#wait.hidden = !isWaiting;
    if (!isWaiting) return;
    if (!prefill?.total) {
      this.#wait.replaceChildren("Waiting…");
      return;
    }
    const { done, total } = prefill;
    const label = `Reading ${NUMBER.format(done)} of ${NUMBER.format(total)} tokens`;
    this.#wait.replaceChildren(label, h("progress", { max: total, value: done, "aria-label": "Prompt read" }));
  }

  #showBar(isRunning) {
    const { state, warnings } = this.data;
    const versions = this.#actions.list(this.data).length;
    const key = [state, warnings.length, versions, this.#tokens !== null].join();
    if (key === this.#barKey) return;
    this.#barKey = key;
    this.#notes.replaceChildren(...notes(this.data, this.#actions));
    if (isRunning) {
      this.#bar.replaceChildren();
      return;
    }
    const hasAnswer = this.data.steps.length > 0;
    this.#toggle = this.data.tokens.length
      ? button("bars", "Token probabilities", () => this.showTokens(this.#tokens === null), { "aria-pressed": String(this.#tokens !== null) })
      : null;
    this.#facts.textContent = hasAnswer ? facts(this.data) : "";
    this.#bar.replaceChildren(
      ...[
        alternatives(this.data, this.#actions),
        hasAnswer ? copyButton(() => answerText(this.data)) : null,
        hasAnswer || !this.data.error ? this.#again() : null,
        this.#toggle,
        this.#facts,
      ].filter(Boolean),
    );
  }

  #again() {
    return button("redo", "Answer again", () => this.#actions.again(this.data));
  }

  /** Shows the answer's text as coloured tokens, or as prose. */
  showTokens(isOn) {
    if (isOn === (this.#tokens !== null)) return;
    for (const { node } of this.#steps) {
      if (node.classList.contains("prose")) node.hidden = isOn;
    }
    if (isOn) {
      this.#tokens = new TokensView();
      this.#body.after(this.#tokens.node);
    } else {
      this.#tokens.hide();
      this.#tokens.node.remove();
      this.#tokens = null;
    }
    this.update();
    this.#toggle?.focus();
  }
}

function facts(node) {
  const { usage, seed } = node;
  const count = usage?.output_tokens ?? node.numPieces;
  const rate = speed(node);
  return [
    node.model,
    count ? `${NUMBER.format(count)} tokens` : "",
    rate ? `${rate.toFixed(1)} tokens/s` : "",
    seed !== null && seed !== undefined ? `seed ${seed}` : "",
  ].filter(Boolean).join(" · ");
}

/** What the user should know about how an answer ended. */
function notes(node, { again, key }) {
  const { state, isCut, error, warnings, steps } = node;
  const found = warnings.map((text) => note("warn", text));
  if (state === "stopped") found.push(note("stop", "Stopped."));
  if (state === "interrupted") found.push(note("warn", "This page was closed before the answer was whole."));
  if (isCut) found.push(note("warn", "Cut: the token limit or the end of the context was reached."));
  if (state === "done" && !steps.some(({ kind }) => kind !== "reasoning")) {
    found.push(note("warn", "The model gave no answer."));
  }
  if (error) found.push(errorCard(error, { again: () => again(node), key }));
  return found;
}

function note(name, text) {
  return h("p", { class: "note" }, icon(name), text);
}


// Settings of a conversation and the panel that shows them.

import { h } from "./dom.js";

export const EFFORTS = ["none", "low", "medium", "high"];

/** What a new conversation starts with; null leaves a value to the server. */
export const DEFAULTS = {
  model: "",
  effort: "medium",
  system: "",
  temperature: null,
  top_p: null,
  top_k: null,
  min_p: null,
  seed: null,
  max_tokens: null,
  logprobs: false,
  tools: [],
};

const NUMBERS = [
  ["temperature", "Temperature", { min: 0, max: 2, step: 0.05 }, "0 takes the likeliest token"],
  ["top_p", "Top-p", { min: 0, max: 1, step: 0.01 }, "Draws from the likeliest tokens that make up this share"],
  ["top_k", "Top-k", { min: 0, step: 1 }, "Draws from this many of the likeliest tokens"],
  ["min_p", "Min-p", { min: 0, max: 1, step: 0.01 }, "Leaves out tokens below this part of the likeliest"],
  ["seed", "Seed", { min: 0, max: Number.MAX_SAFE_INTEGER, step: 1 }, "The same seed gives the same answer, bit for bit"],
  ["max_tokens", "Max tokens", { min: 1, step: 1 }, "Longest answer, reasoning included"],
];

/** The panel's fields. `changed(name, value)` is called with every valid change. */
export class SettingsForm {
  #inputs = {};
  #tools = h("div", { class: "checks" });
  #toolsBox;
  #changed;
  #values = DEFAULTS;

  constructor(root, changed) {
    this.#changed = changed;
    this.#toolsBox = group("Tools", this.#tools);
    root.append(
      group("Instructions", this.#system()),
      group("Sampling", h("div", { class: "numbers" }, NUMBERS.map((field) => this.#number(...field)))),
      h("p", { class: "hint" }, "Empty fields follow the server."),
      this.#toolsBox,
      group("Answer", this.#check("logprobs", "Token probabilities", "Colours each token of new answers by how sure the model was")),
    );
  }

  /** Shows the settings of a conversation, and the types of tools that the server has. */
  show(values, tools) {
    this.#values = values;
    this.#inputs.system.value = values.system;
    this.#inputs.logprobs.checked = values.logprobs;
    for (const [name] of NUMBERS) this.#inputs[name].value = values[name] ?? "";
    this.#toolsBox.hidden = tools.length === 0;
    this.#tools.replaceChildren(...tools.map((name) => this.#tool(name)));
  }

  #system() {
    const placeholder = "How the model should behave";
    const input = h("textarea", {
      rows: 4, placeholder, "aria-label": "Instructions", spellcheck: true,
      on: { input: () => this.#changed("system", input.value.trim()) },
    });
    this.#inputs.system = input;
    return input;
  }

  #number(name, label, limits, hint) {
    const input = h("input", {
      type: "number", id: `set-${name}`, placeholder: "default", inputMode: "decimal", ...limits,
      on: {
        input: () => {
          const isValid = input.checkValidity();
          input.setAttribute("aria-invalid", String(!isValid));
          if (isValid) this.#changed(name, input.value === "" ? null : input.valueAsNumber);
        },
      },
    });
    this.#inputs[name] = input;
    return h("label", { for: input.id, title: hint }, h("span", {}, label), input);
  }

  #check(name, label, hint) {
    const input = h("input", {
      type: "checkbox", id: `set-${name}`,
      on: { change: () => this.#changed(name, input.checked) },
    });
    this.#inputs[name] = input;
    const text = h("span", {}, label, h("small", {}, hint));
    return h("label", { class: "check", for: input.id }, input, text);
  }

  #tool(name) {
    const input = h("input", {
      type: "checkbox",
      checked: this.#values.tools.includes(name),
      on: {
        change: () => {
          const others = this.#values.tools.filter((other) => other !== name);
          this.#changed("tools", input.checked ? [...others, name] : others);
        },
      },
    });
    return h("label", { class: "check" }, input, h("span", {}, toolName(name)));
  }
}

const TOOL_NAMES = {
  code_interpreter: "Python",
  web_search: "Browser",
  apply_patch: "Edit files",
  mcp: "MCP servers",
};

/** What users call a type of tool. */
export function toolName(type) {
  return TOOL_NAMES[type] ?? type;
}

function group(title, ...content) {
  return h("fieldset", {}, h("legend", {}, title), ...content);
}

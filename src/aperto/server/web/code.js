// Code blocks: a language, a copy button, and colours from highlight.js, loaded at first use.

import { copyButton, h } from "./dom.js";

const LANGUAGES = {
  bash: "bash", sh: "bash", shell: "bash", zsh: "bash", console: "bash", c: "c", h: "c",
  cpp: "cpp", "c++": "cpp", cc: "cpp", css: "css", diff: "diff", patch: "diff", go: "go",
  golang: "go", html: "xml", xml: "xml", svg: "xml", java: "java", javascript: "javascript",
  js: "javascript", jsx: "javascript", mjs: "javascript", json: "json", jsonc: "json",
  markdown: "markdown", md: "markdown", python: "python", py: "python", rust: "rust", rs: "rust",
  sql: "sql", typescript: "typescript", ts: "typescript", tsx: "typescript", yaml: "yaml",
  yml: "yaml",
};
const ENTITIES = { "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&#x27;": "'" };
const SPAN = /<span class="([^"]*)">|<\/span>|&(?:amp|lt|gt|quot|#x27);|[^<&]+/g;
const LONGEST = 60_000;
const SHORTEST_WAIT_MS = 120;
// Colouring may take this part of the time while an answer runs.
const SHARE = 12;

const vendor = new URL("vendor/highlight/", import.meta.url);
const ready = new Map();
let core = null;

/** highlight.js with a language registered. */
function highlighter(language) {
  core ??= import(new URL("core.min.js", vendor).href).then((module) => module.default);
  if (!ready.has(language)) {
    const file = import(new URL(`languages/${language}.min.js`, vendor).href);
    ready.set(language, Promise.all([core, file]).then(([hljs, module]) => {
      hljs.registerLanguage(language, module.default);
      return hljs;
    }));
  }
  return ready.get(language);
}

/** highlight.js's output, which knows only spans and five references, as nodes. */
function fragment(html) {
  const root = document.createDocumentFragment();
  const open = [root];
  for (const [piece, scope] of html.matchAll(SPAN)) {
    if (scope !== undefined) {
      const span = h("span", { class: scope });
      open.at(-1).append(span);
      open.push(span);
    } else if (piece === "</span>") {
      open.pop();
    } else {
      open.at(-1).append(ENTITIES[piece] ?? piece);
    }
  }
  return root;
}

/** A code block that grows. */
export class CodeView {
  #code = h("code");
  #language;
  #text = "";
  #shown = "";
  #cost = 0;
  #timer = null;

  constructor({ text, lang }) {
    this.lang = lang ?? "";
    const name = this.lang.split(/[\s{:,]/)[0];
    this.#language = LANGUAGES[name.toLowerCase()];
    this.node = h(
      "figure",
      { class: "code" },
      h("figcaption", {}, h("span", {}, name), copyButton(() => this.#text, "Copy code")),
      h("pre", { tabIndex: 0 }, this.#code),
    );
    this.update({ type: "code", text, lang });
  }

  /** Shows a token's text; false where the token is no later state of this block. */
  update({ type, text, lang }) {
    if (type !== "code" || (lang ?? "") !== this.lang) return false;
    this.#text = text;
    if (text.startsWith(this.#shown)) this.#code.append(text.slice(this.#shown.length));
    else this.#code.textContent = text;
    this.#shown = text;
    if (this.#language && text.length <= LONGEST) {
      const wait = this.#cost ? Math.max(SHORTEST_WAIT_MS, SHARE * this.#cost) : 0;
      this.#timer ??= setTimeout(() => this.#highlight(), wait);
    }
    return true;
  }

  async #highlight() {
    let hljs;
    try {
      hljs = await highlighter(this.#language);
    } catch {
      return; // the file did not come; plain code is still readable
    } finally {
      this.#timer = null;
    }
    const start = performance.now();
    const options = { language: this.#language, ignoreIllegals: true };
    this.#code.replaceChildren(fragment(hljs.highlight(this.#text, options).value));
    this.#cost = Math.max(performance.now() - start, 0.1);
  }
}

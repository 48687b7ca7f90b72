// Markdown that grows: only what changed since the last frame is read and drawn again.

import { CodeView } from "./code.js";
import { h } from "./dom.js";
import { appendInline } from "./inline.js";
import { mathsExtensions, mathsNode } from "./maths.js";
import { Marked } from "./vendor/marked/marked.esm.js";

const marked = new Marked({ gfm: true }, { extensions: mathsExtensions });
const INVISIBLE = new Set(["space", "def"]);

/** Text of an answer as prose; `update` is called with ever longer text. */
export class Prose {
  #blocks;
  #settledText = 0;
  #settledBlocks = 0;
  #text = "";

  constructor(root) {
    this.#blocks = new Blocks(root);
  }

  /** Draws the text; `isWhole` says that nothing follows, so all of it is read once more. */
  update(text, isWhole = false) {
    text = text.replaceAll("\r\n", "\n");
    if (isWhole || !text.startsWith(this.#text.slice(0, this.#settledText))) {
      this.#settledText = this.#settledBlocks = 0;
    }
    this.#text = text;
    const tokens = marked.lexer(text.slice(this.#settledText));
    const visible = tokens.filter((token) => !INVISIBLE.has(token.type));
    // A definition changes links before it.
    const isStale = isWhole && tokens.some((token) => token.type === "def");
    this.#blocks.update(visible, this.#settledBlocks, isStale);
    if (!isWhole) this.#settle(tokens, visible.length);
  }

  /** The last two blocks may still change with what follows them; those before may not. */
  #settle(tokens, numVisible) {
    let keep = 2;
    let end = tokens.length;
    while (end > 0 && keep > 0) {
      end -= 1;
      if (!INVISIBLE.has(tokens[end].type)) keep -= 1;
    }
    if (keep > 0) return;
    for (const token of tokens.slice(0, end)) this.#settledText += token.raw.length;
    this.#settledBlocks += numVisible - 2;
  }
}

/** A row of blocks below one element. */
class Blocks {
  #root;
  #entries = [];

  constructor(root) {
    this.#root = root;
  }

  /** Draws `tokens` in place of the blocks from index `from` on; blocks that stay are kept. */
  update(tokens, from = 0, isStale = false) {
    tokens.forEach((token, index) => this.#put(from + index, token, isStale));
    for (const { view } of this.#entries.splice(from + tokens.length)) view.node.remove();
  }

  #put(index, token, isStale) {
    const entry = this.#entries[index];
    if (entry && !isStale) {
      if (entry.raw === token.raw && entry.type === token.type) return;
      if (entry.view.update?.(token)) {
        entry.raw = token.raw;
        return;
      }
    }
    const view = blockView(token);
    if (entry) entry.view.node.replaceWith(view.node);
    else this.#root.append(view.node);
    this.#entries[index] = { raw: token.raw, type: token.type, view };
  }
}

function blockView(token) {
  if (token.type === "code") return new CodeView(token);
  if (token.type === "list") return new ListView(token);
  if (token.type === "blockquote") return new QuoteView(token);
  return { node: blockNode(token) };
}

function blockNode(token) {
  switch (token.type) {
    case "heading":
      // The page's own headings take the first two levels.
      return inlineIn(h(`h${Math.min(token.depth + 2, 6)}`, { class: `h${token.depth}` }), token);
    case "hr":
      return h("hr");
    case "table":
      return table(token);
    case "mathsBlock":
      return token.isOpen ? h("pre", { class: "open-maths" }, token.raw) : mathsNode(token.text, true);
    case "html":
      return h("p", { class: "html" }, token.raw.trimEnd());
    case "checkbox":
      return h("input", { type: "checkbox", checked: token.checked, disabled: true });
    case "text":
      return inlineIn(h("span"), token);
    default:
      return inlineIn(h("p"), token);
  }
}

function inlineIn(element, token) {
  appendInline(element, token.tokens ?? [{ type: "text", text: token.text ?? token.raw }]);
  return element;
}

function table({ header, rows }) {
  const cell = (tag) => (data) =>
    inlineIn(h(tag, { class: data.align ? `align-${data.align}` : null }), data);
  return h(
    "div",
    { class: "table", tabIndex: 0, role: "region", "aria-label": "Table" },
    h(
      "table",
      {},
      h("thead", {}, h("tr", {}, header.map(cell("th")))),
      h("tbody", {}, rows.map((row) => h("tr", {}, row.map(cell("td"))))),
    ),
  );
}

class QuoteView {
  node = h("blockquote");
  #blocks = new Blocks(this.node);

  constructor(token) {
    this.update(token);
  }

  update(token) {
    if (token.type !== "blockquote") return false;
    this.#blocks.update(token.tokens.filter(({ type }) => !INVISIBLE.has(type)));
    return true;
  }
}

class ListView {
  #items = [];

  constructor(token) {
    this.ordered = token.ordered;
    this.loose = token.loose;
    this.node = token.ordered ? h("ol", { start: token.start || 1 }) : h("ul");
    this.update(token);
  }

  update(token) {
    if (token.type !== "list" || token.ordered !== this.ordered || token.loose !== this.loose) {
      return false;
    }
    token.items.forEach((item, index) => this.#put(index, item));
    for (const { node } of this.#items.splice(token.items.length)) node.remove();
    return true;
  }

  #put(index, item) {
    let view = this.#items[index];
    if (view?.raw === item.raw) return;
    if (!view) {
      const node = h("li");
      view = this.#items[index] = { node, blocks: new Blocks(node) };
      this.node.append(node);
    }
    view.raw = item.raw;
    view.node.className = item.task ? "task" : "";
    view.blocks.update(item.tokens.filter(({ type }) => !INVISIBLE.has(type)));
  }
}

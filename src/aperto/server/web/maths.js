// Maths: TeX between dollars or backslashed brackets, drawn by KaTeX, which loads at first use.

import { h } from "./dom.js";

const OPTIONS = { throwOnError: true, strict: "ignore", trust: false, maxSize: 40, maxExpand: 500 };
const CACHE_ENTRIES = 300;
const cache = new Map();
let loading = null;
let katex = null;

function load() {
  loading ??= (async () => {
    const base = new URL("vendor/katex/", import.meta.url);
    document.head.append(h("link", { rel: "stylesheet", href: new URL("katex.min.css", base).href }));
    await import(new URL("katex.min.js", base).href);
    katex = globalThis.katex;
  })();
  return loading;
}

/** An element that shows TeX; its source until KaTeX is there, and where it makes no sense. */
export function mathsNode(tex, isDisplay) {
  const element = h("span", { class: isDisplay ? "maths display" : "maths" }, tex);
  if (katex) draw(element, tex, isDisplay);
  else load().then(() => draw(element, tex, isDisplay), () => element.classList.add("bad"));
  return element;
}

function draw(element, tex, displayMode) {
  const key = `${displayMode}${tex}`;
  let drawn = cache.get(key);
  if (!drawn) {
    drawn = h("span");
    try {
      katex.render(tex, drawn, { ...OPTIONS, displayMode });
    } catch (error) {
      drawn = h("code", { class: "bad", title: error.message }, tex);
    }
    if (cache.size >= CACHE_ENTRIES) cache.delete(cache.keys().next().value);
    cache.set(key, drawn);
  }
  element.replaceChildren(drawn.cloneNode(true));
}

// A dollar opens before a non-space and closes after one, not before a digit: "$5 and $6" is money.
const INLINE = /^(?:\$\$([^\n]+?)\$\$|\$(?![\s$])((?:\\[^\n]|[^$\\\n])*?[^\s$\\]|(?:\\[^\n])+?)\$(?![\d$])|\\\(([\s\S]+?)\\\))/;
// At the end of what has come so far, display maths may still be open.
const BLOCK = /^ {0,3}(?:\$\$((?:(?!\n\s*\n)[\s\S])+?)(?:\$\$[ \t]*(?:\n|$)|$)|\\\[((?:(?!\n\s*\n)[\s\S])+?)(?:\\\][ \t]*(?:\n|$)|$))/;

/** Marked's extensions: tokens "maths" (inline) and "mathsBlock". */
export const mathsExtensions = [
  {
    name: "mathsBlock",
    level: "block",
    start: (source) => indexOf(source, /^ {0,3}(?:\$\$|\\\[)/m),
    tokenizer(source) {
      const match = BLOCK.exec(source);
      if (!match) return undefined;
      const isOpen = !/(?:\$\$|\\\])\s*$/.test(match[0]) || /^\s*\$\$\s*$/.test(match[0]);
      return { type: "mathsBlock", raw: match[0], text: (match[1] ?? match[2]).trim(), isOpen };
    },
  },
  {
    name: "maths",
    level: "inline",
    start: (source) => indexOf(source, /\$|\\\(/),
    tokenizer(source) {
      const match = INLINE.exec(source);
      if (!match) return undefined;
      return { type: "maths", raw: match[0], text: match[1] ?? match[2] ?? match[3] };
    },
  },
];

function indexOf(source, pattern) {
  const at = source.search(pattern);
  return at < 0 ? undefined : at;
}

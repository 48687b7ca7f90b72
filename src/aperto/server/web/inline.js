// Markdown's inline tokens as DOM nodes.

import { h } from "./dom.js";
import { mathsNode } from "./maths.js";

const PLAIN_TAGS = new Set(["b", "i", "kbd", "mark", "s", "small", "sub", "sup", "u"]);
const SAFE_PROTOCOLS = new Set(["http:", "https:", "mailto:"]);
const ENTITY = /&(?:#(\d{1,7})|#x([0-9a-f]{1,6})|([a-z]{2,8}\d?));/gi;
const NAMED = {
  amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0", ensp: "\u2002",
  emsp: "\u2003", thinsp: "\u2009", shy: "\u00ad", ndash: "–", mdash: "—", hellip: "…",
  laquo: "«", raquo: "»", lsquo: "‘", rsquo: "’", ldquo: "“", rdquo: "”", bull: "•",
  middot: "·", times: "×", divide: "÷", minus: "−", plusmn: "±", deg: "°", micro: "µ",
  frac12: "½", sup2: "²", sup3: "³", le: "≤", ge: "≥", ne: "≠", asymp: "≈", infin: "∞",
  rarr: "→", larr: "←", uarr: "↑", darr: "↓", harr: "↔", copy: "©", reg: "®", trade: "™",
  euro: "€", pound: "£", yen: "¥", cent: "¢", sect: "§", para: "¶", check: "✓",
};

/** Text with its character references resolved; unknown ones stay as they are. */
export function decodeEntities(text) {
  return text.replace(ENTITY, (whole, decimal, hex, name) => {
    if (name) return NAMED[name] ?? whole;
    const code = decimal ? Number(decimal) : parseInt(hex, 16);
    return code > 0 && code <= 0x10ffff ? String.fromCodePoint(code) : whole;
  });
}

/** Appends inline tokens to `parent`. HTML is shown as text, but for a few plain tags. */
export function appendInline(parent, tokens) {
  const open = [parent];
  for (const token of tokens) {
    if (token.type === "html") appendTag(open, token.text);
    else open.at(-1).append(inlineNode(token));
  }
}

function withInline(element, tokens) {
  appendInline(element, tokens);
  return element;
}

function inlineNode(token) {
  switch (token.type) {
    case "strong":
    case "em":
    case "del":
      return withInline(h(token.type), token.tokens);
    case "codespan":
      return h("code", {}, token.text);
    case "br":
      return h("br");
    case "link":
      return link(token.href, token.title, withInline(h("span"), token.tokens));
    case "image":
      return link(token.href, token.title, h("span", { class: "image" }, token.text || token.href));
    case "maths":
      return mathsNode(token.text, false);
    case "checkbox":
      return h("input", { type: "checkbox", checked: token.checked, disabled: true });
    case "escape":
      return document.createTextNode(token.text);
    default:
      if (token.tokens) return withInline(document.createDocumentFragment(), token.tokens);
      return document.createTextNode(decodeEntities(token.text ?? token.raw));
  }
}

/** Links go out only when they are clicked, and say nothing about this page; images are links. */
function link(href, title, content) {
  const url = URL.parse?.(decodeEntities(href)) ?? parsed(decodeEntities(href));
  if (!url || !SAFE_PROTOCOLS.has(url.protocol)) return content;
  const rel = "noopener noreferrer nofollow";
  return h("a", { href: url.href, title: title ?? null, target: "_blank", rel }, content);
}

function parsed(href) {
  try {
    return new URL(href);
  } catch {
    return null;
  }
}

/** An opening or closing tag: `open` holds the elements that are open, the innermost last. */
function appendTag(open, text) {
  const [, slash, name] = /^<(\/?)([a-z]+)\s*\/?>$/i.exec(text) ?? [];
  const tag = name?.toLowerCase();
  if (tag === "br") {
    open.at(-1).append(h("br"));
  } else if (!PLAIN_TAGS.has(tag)) {
    open.at(-1).append(text);
  } else if (!slash) {
    const element = h(tag);
    open.at(-1).append(element);
    open.push(element);
  } else if (open.length > 1 && open.at(-1).localName === tag) {
    open.pop();
  }
}

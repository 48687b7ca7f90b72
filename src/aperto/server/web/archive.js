// Conversations as files: JSON to keep and read back, Markdown to read.

import { newId } from "./conversation.js";
import { thought } from "./steps.js";

const FORMAT = "aperto-conversations";
const VERSION = 1;
const STATES = new Set(["done", "stopped", "interrupted", "failed"]);

/** JSON text of some conversations, each {record, nodes}. */
export function toJson(conversations) {
  return JSON.stringify({ format: FORMAT, version: VERSION, conversations }, null, 1);
}

/** Conversations out of JSON text, with new ids. Throws Error with what is wrong. */
export function fromJson(text) {
  let data;
  try {
    data = JSON.parse(text);
  } catch {
    throw new Error("This file is not JSON.");
  }
  if (data?.format !== FORMAT || data.version !== VERSION) {
    throw new Error(`This file is not an export of this page (format "${FORMAT}", version ${VERSION}).`);
  }
  return data.conversations.map(adopted);
}

/** A copy under new ids, so that an import never replaces what is there. */
function adopted({ record, nodes }) {
  const ids = new Map(nodes.map((node) => [node.id, newId()]));
  const conversation = newId();
  const kept = nodes.map((node) => ({
    ...checked(node),
    id: ids.get(node.id),
    parent: ids.get(node.parent) ?? null,
    conversation,
  }));
  return { record: { ...record, id: conversation, head: ids.get(record.head) ?? null }, nodes: kept };
}

function checked(node) {
  const isUser = node.role === "user" && typeof node.text === "string";
  const isAnswer = node.role === "assistant" && Array.isArray(node.steps);
  if (!isUser && !isAnswer) throw new Error("A message in this file is damaged.");
  return isAnswer && !STATES.has(node.state) ? { ...node, state: "interrupted" } : node;
}

/** Markdown of the messages that are shown. */
export function toMarkdown(record, path) {
  const parts = [`# ${record.title || "Conversation"}`];
  if (record.settings.system) parts.push(`> ${record.settings.system.replaceAll("\n", "\n> ")}`);
  for (const node of path) {
    parts.push(node.role === "user" ? `## You\n\n${node.text}` : answerMarkdown(node));
  }
  return `${parts.join("\n\n")}\n`;
}

function answerMarkdown({ model, steps }) {
  return [`## ${model}`, ...steps.map(stepMarkdown)].join("\n\n");
}

function stepMarkdown({ kind, text, name, output, started, ended }) {
  if (kind === "text") return text;
  if (kind === "reasoning") {
    return folded(thought((ended ?? started) - started), text);
  }
  const result = output === null ? "" : `\n\n${fenced(output)}`;
  return folded(`Call of ${name}`, `${fenced(text)}${result}`);
}

function folded(title, text) {
  return `<details>\n<summary>${title}</summary>\n\n${text.trim()}\n\n</details>`;
}

/** A fence longer than any run of backticks in the text. */
function fenced(text) {
  const longest = Math.max(2, ...Array.from(text.matchAll(/`+/g), ([run]) => run.length));
  const fence = "`".repeat(longest + 1);
  return `${fence}\n${text}\n${fence}`;
}

/** A file name out of a title. */
export function fileName(title, suffix) {
  const safe = title.normalize("NFKD").replace(/[^\w]+/g, "-").replace(/^-+|-+$/g, "").slice(0, 50);
  return `${safe.toLowerCase() || "conversation"}.${suffix}`;
}

// A conversation: a tree of messages, of which one path, from the root to `head`, is shown.

/** An id; without crypto.randomUUID, which plain http does not have. */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Holds the record that the store keeps and its messages ("nodes"). */
export class Conversation {
  /** Args: the record; its nodes in any order. */
  constructor(record, nodes = []) {
    this.record = record;
    this.nodes = new Map(nodes.sort((a, b) => a.order - b.order).map((node) => [node.id, node]));
  }

  /** A new one, empty and without a title. */
  static create(settings) {
    const now = Date.now();
    const title = "";
    return new Conversation({
      id: newId(), title, created: now, updated: now, head: null, settings: { ...settings },
    });
  }

  get id() {
    return this.record.id;
  }

  get isEmpty() {
    return this.nodes.size === 0;
  }

  /** The messages shown, the first one first; `end` instead of the head may be given. */
  path(end = this.record.head) {
    const found = [];
    for (let node = this.nodes.get(end); node; node = this.nodes.get(node.parent)) {
      found.unshift(node);
    }
    return found;
  }

  /** Adds a message below `parent` (an id, or null for the root) and shows it. */
  add(parent, message) {
    const order = Math.max(0, ...Array.from(this.nodes.values(), (node) => node.order)) + 1;
    const node = { ...message, id: newId(), conversation: this.id, parent, order };
    this.nodes.set(node.id, node);
    this.record.head = node.id;
    this.record.updated = Date.now();
    if (!this.record.title && node.role === "user") this.record.title = titleOf(node.text);
    return node;
  }

  /** Takes a message without followers out again; its parent is shown. */
  drop(node) {
    this.nodes.delete(node.id);
    this.record.head = node.parent;
  }

  /** A message and its alternatives, oldest first. */
  alternatives(node) {
    return [...this.nodes.values()].filter(({ parent }) => parent === node.parent);
  }

  /** Shows the path through a message, to the newest message below it. */
  show(node) {
    let end = node;
    for (;;) {
      const below = [...this.nodes.values()].filter(({ parent }) => parent === end.id);
      if (!below.length) break;
      end = below.at(-1);
    }
    this.record.head = end.id;
  }
}

/** The first line of a text, cut at a word near 60 characters. */
export function titleOf(text) {
  const line = text.trim().split("\n")[0].replace(/\s+/g, " ");
  return line.length <= 60 ? line : `${line.slice(0, 60).replace(/\s+\S*$/, "")}…`;
}

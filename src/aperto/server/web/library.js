// All conversations: opening, keeping, answering, and other tabs that do the same.

import { fromJson } from "./archive.js";
import { Conversation } from "./conversation.js";
import { unsaved } from "./preferences.js";
import { Run } from "./run.js";

/** Holds the open conversation and the answers under way.
 *
 * `listChanged()` is called when the list or the open conversation is another one,
 * `answerChanged(node)` when an answer of the open one grew, `answered(run)` when one ended. */
export class Library {
  #store;
  #api;
  #on;
  #runs = new Map();
  #live = new Map();
  #elsewhere = new Set();
  #channel = new BroadcastChannel("aperto");

  constructor(store, api, on) {
    this.#store = store;
    this.#api = api;
    this.#on = on;
    this.records = [];
    this.current = null;
    this.#channel.onmessage = ({ data }) => this.#heard(data);
    // The store is too slow for a page that goes.
    addEventListener("pagehide", () => unsaved.put(Array.from(this.#runs.values(), ({ node }) => node)));
  }

  /** Keeps what a page that went away had no time to write; call it once, before all else. */
  async rescue() {
    for (const node of unsaved.take()) {
      const kept = await this.#store.load(node.conversation);
      const isOpen = kept?.nodes.some(({ id, state }) => id === node.id && state === "running");
      if (isOpen) await this.#store.save(kept.record, [node]);
    }
  }

  /** Ids of conversations that are being answered here. */
  get running() {
    return new Set(this.#runs.keys());
  }

  /** The answer under way in the open conversation. */
  get run() {
    return this.#runs.get(this.current.id) ?? null;
  }

  /** Shows a new conversation; it is kept once something is said. */
  async create(settings) {
    this.current = Conversation.create(settings);
    await this.refresh();
  }

  /** Shows a kept conversation; false where there is none with this id. */
  async open(id) {
    const found = await this.read(id);
    if (!found) return false;
    this.current = found;
    await this.refresh();
    return true;
  }

  /** A conversation by id, as it is in memory or in the store; null where there is none. */
  async read(id) {
    if (this.#live.has(id)) return this.#live.get(id);
    const kept = await this.#store.load(id);
    if (!kept) return null;
    const isHere = this.#elsewhere.has(id);
    // Whoever wrote "running" is gone, unless another tab says otherwise.
    for (const node of kept.nodes) {
      if (node.state === "running" && !isHere) node.state = "interrupted";
    }
    return new Conversation(kept.record, kept.nodes);
  }

  /** Reads the list again. */
  async refresh() {
    this.records = await this.#store.list();
    this.#on.listChanged();
  }

  /** Says something below `parent` (the end, unless it is given) and has it answered. */
  async say(text, parent = this.current.record.head) {
    const conversation = this.current;
    const node = conversation.add(parent, { role: "user", text, created: Date.now() });
    await this.#save(conversation, [node]);
    await this.#answer(conversation, node);
  }

  /** Answers once more: earlier answers stay as other versions, failures without content do not. */
  async again(node) {
    const conversation = this.current;
    const parent = conversation.nodes.get(node.parent);
    if (node.state === "failed" && node.steps.length === 0) {
      conversation.drop(node);
      await this.#save(conversation, [], [node.id]);
    }
    await this.#answer(conversation, parent);
  }

  async #answer(conversation, node) {
    const run = new Run(conversation, node.id, {
      save: (nodes) => this.#save(conversation, nodes),
      changed: (changed) => {
        if (this.current === conversation) this.#on.answerChanged(changed);
      },
    });
    this.#runs.set(conversation.id, run);
    this.#live.set(conversation.id, conversation);
    await this.refresh();
    await run.read(this.#api);
    this.#runs.delete(conversation.id);
    this.#live.delete(conversation.id);
    await this.#save(conversation, [run.node]);
    await this.refresh();
    this.#on.answered(run);
  }

  /** Keeps a change of the open conversation's settings or of what it shows. */
  async keep() {
    if (!this.current.isEmpty) await this.#save(this.current);
  }

  /** Gives a conversation another title. */
  async rename(id, title) {
    const conversation = id === this.current.id ? this.current : await this.read(id);
    conversation.record.title = title;
    await this.#save(conversation);
    await this.refresh();
  }

  /** Removes a conversation; returns what brings it back. */
  async remove(id) {
    this.#runs.get(id)?.stop();
    const { record, nodes } = await this.read(id);
    await this.#store.remove(id);
    this.#channel.postMessage({ id, isRunning: false });
    return async () => {
      await this.#store.save(record, [...nodes.values()]);
      await this.refresh();
    };
  }

  /** Conversations whose messages have the text: a promise of ids. */
  search(text) {
    return this.#store.search(text);
  }

  /** Adds the conversations of an exported file; returns how many. Throws Error. */
  async import(text) {
    const conversations = fromJson(text);
    for (const { record, nodes } of conversations) await this.#store.save(record, nodes);
    await this.refresh();
    return conversations.length;
  }

  async #save(conversation, nodes = [], removed = []) {
    await this.#store.save(conversation.record, nodes, removed);
    const { id } = conversation;
    this.#channel.postMessage({ id, isRunning: this.#runs.has(id) });
  }

  /** Another tab wrote a conversation. */
  async #heard({ id, isRunning }) {
    if (isRunning) this.#elsewhere.add(id);
    else this.#elsewhere.delete(id);
    if (id === this.current?.id && !this.#runs.has(id) && !this.current.isEmpty) {
      this.current = (await this.read(id)) ?? Conversation.create(this.current.record.settings);
    }
    await this.refresh();
  }
}

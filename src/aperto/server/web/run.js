// One answer under way: reads events into a record, keeps it, and can be stopped.

import { absorb, close, newAnswer } from "./answer.js";
import { ApiError, requestBody } from "./wire.js";

const SAVE_EVERY_MS = 700;
const TICK_MS = 1000;

/** Answers the end of a conversation. `changed(node)` is called after every change. */
export class Run {
  #abort = new AbortController();
  #changed;
  #save;
  #isSaved = false;

  /** Args: conversation; id of the user message to answer; save(nodes); changed(node). */
  constructor(conversation, parent, { save, changed }) {
    const { settings } = conversation.record;
    this.conversation = conversation;
    this.node = conversation.add(parent, newAnswer(settings));
    this.body = requestBody(conversation.path(parent), settings, this.node.seed);
    this.#save = save;
    this.#changed = changed;
  }

  /** Ends the request; what came stays. */
  stop() {
    this.#abort.abort();
  }

  /** Keeps what came so far, now. */
  keep() {
    this.#isSaved = true;
    return this.#save([this.node]);
  }

  /** Reads until the end. Returns the record; its state says how it ended. Never throws. */
  async read(api) {
    const ticking = setInterval(() => this.#changed(this.node), TICK_MS);
    const saving = setInterval(() => this.#isSaved || this.keep(), SAVE_EVERY_MS);
    await this.keep();
    try {
      for await (const event of api.answer(this.body, this.#abort.signal)) {
        absorb(this.node, event);
        this.#isSaved = false;
        this.#changed(this.node);
      }
      close(this.node, "done");
    } catch (error) {
      this.#fail(error);
    } finally {
      clearInterval(ticking);
      clearInterval(saving);
    }
    this.#changed(this.node);
    await this.keep();
    return this.node;
  }

  #fail(error) {
    if (this.#abort.signal.aborted) close(this.node, "stopped");
    else if (error instanceof ApiError) close(this.node, "failed", error.record());
    else {
      console.error(error);
      close(this.node, "failed", { status: 0, code: "page_error", message: String(error) });
    }
  }
}

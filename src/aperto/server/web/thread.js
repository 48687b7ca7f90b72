// The messages on the page, drawn at most once a frame, and the scroll position.

import { eachFrame } from "./dom.js";
import { AnswerView, UserView } from "./messages.js";

const NEAR_END_PX = 60;

/** Shows a path of messages below `root`. Actions: see UserView and AnswerView. */
export class Thread {
  #scroller;
  #root;
  #toEnd;
  #actions;
  #views = new Map();
  #changed = new Set();
  #isFollowing = true;
  #draw = eachFrame(() => this.#update());

  constructor({ scroller, root, toEnd }, actions) {
    this.#scroller = scroller;
    this.#root = root;
    this.#toEnd = toEnd;
    this.#actions = actions;
    scroller.addEventListener("scroll", () => this.#follow(this.#distance() < NEAR_END_PX), { passive: true });
    toEnd.addEventListener("click", () => this.toEnd());
  }

  /** Shows these messages; views of those that stay are kept. */
  show(path) {
    const kept = new Map();
    for (const node of path) {
      const old = this.#views.get(node.id);
      kept.set(node.id, old?.data === node ? old : this.#view(node));
    }
    for (const [id, view] of this.#views) {
      if (kept.get(id) !== view) view.remove();
    }
    this.#views = kept;
    let before = null;
    for (const view of kept.values()) {
      const next = before ? before.nextSibling : this.#root.firstChild;
      if (next !== view.node) this.#root.insertBefore(view.node, next);
      before = view.node;
      this.#changed.add(view);
    }
    this.#update();
  }

  /** Draws an answer that grew, in the next frame. */
  changed(node) {
    const view = this.#views.get(node.id);
    if (!view) return;
    this.#changed.add(view);
    this.#draw();
  }

  /** Goes to the newest message and stays there while it grows. */
  toEnd() {
    this.#follow(true);
    this.#scroller.scrollTop = this.#scroller.scrollHeight;
  }

  /** Opens the last message of the user for editing. */
  editLast() {
    [...this.#views.values()].findLast((view) => view instanceof UserView)?.edit();
  }

  #view(node) {
    return node.role === "user" ? new UserView(node, this.#actions) : new AnswerView(node, this.#actions);
  }

  #update() {
    for (const view of this.#changed) view.update();
    this.#changed.clear();
    if (this.#isFollowing) this.#scroller.scrollTop = this.#scroller.scrollHeight;
    this.#toEnd.hidden = this.#isFollowing || this.#distance() < NEAR_END_PX;
  }

  #distance() {
    const { scrollHeight, scrollTop, clientHeight } = this.#scroller;
    return scrollHeight - scrollTop - clientHeight;
  }

  #follow(isFollowing) {
    this.#isFollowing = isFollowing;
    this.#toEnd.hidden = isFollowing;
  }
}

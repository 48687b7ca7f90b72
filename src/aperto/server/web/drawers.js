// The conversations on the left and the settings on the right; above the page where it is narrow.

import { openDrawers } from "./preferences.js";

const NARROW = matchMedia("(max-width: 60rem)");

/** Opens and closes drawers by name, e.g. {sidebar, panel}. On wide screens the choice is kept. */
export class Drawers {
  #drawers;
  #buttons;
  #veil;
  #main;

  constructor(drawers, { buttons, veil, main }) {
    this.#drawers = drawers;
    this.#buttons = buttons;
    this.#veil = veil;
    this.#main = main;
    veil.addEventListener("click", () => this.closeAll());
    NARROW.addEventListener("change", () => this.#start());
    this.#start();
  }

  /** Whether drawers lie above the page. */
  get isNarrow() {
    return NARROW.matches;
  }

  toggle(name) {
    this.#set(name, this.#drawers[name].hidden);
  }

  /** Closes drawers that lie above the page; false where none did. */
  closeAll() {
    if (!NARROW.matches) return false;
    const open = Object.keys(this.#drawers).filter((name) => !this.#drawers[name].hidden);
    for (const name of open) this.#set(name, false);
    return open.length > 0;
  }

  #start() {
    const kept = openDrawers.get();
    for (const name of Object.keys(this.#drawers)) {
      this.#drawers[name].hidden = NARROW.matches || !kept[name];
      this.#buttons[name].setAttribute("aria-expanded", String(!this.#drawers[name].hidden));
    }
    this.#cover();
  }

  #set(name, isOpen) {
    const drawer = this.#drawers[name];
    if (isOpen && NARROW.matches) this.closeAll();
    drawer.hidden = !isOpen;
    this.#buttons[name].setAttribute("aria-expanded", String(isOpen));
    this.#cover();
    if (NARROW.matches) (isOpen ? drawer.querySelector("button") : this.#buttons[name]).focus();
    else this.#keep();
  }

  #cover() {
    const isCovered = NARROW.matches && Object.values(this.#drawers).some(({ hidden }) => !hidden);
    this.#veil.hidden = !isCovered;
    this.#main.inert = isCovered;
  }

  #keep() {
    const state = Object.entries(this.#drawers).map(([name, { hidden }]) => [name, !hidden]);
    openDrawers.set(Object.fromEntries(state));
  }
}

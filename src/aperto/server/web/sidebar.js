// The list of conversations: search, rename, delete, export.

import { button, h } from "./dom.js";
import { menu } from "./dialogs.js";

const DAY_MS = 86_400_000;

/** The list. Actions: open(id), rename(id, title), remove(id), exportJson(id), exportMarkdown(id),
 * matches(text) -> Promise of ids. */
export class Sidebar {
  #list;
  #search;
  #actions;
  #records = [];
  #current = null;
  #running = new Set();
  #found = null;

  constructor(list, search, actions) {
    this.#list = list;
    this.#search = search;
    this.#actions = actions;
    search.addEventListener("input", () => this.#filter());
  }

  /** Shows records, newest first; marks the current one and those that are being answered. */
  show(records, current, running) {
    this.#records = records.toSorted((a, b) => b.updated - a.updated);
    this.#current = current;
    this.#running = running;
    this.#draw();
  }

  async #filter() {
    const text = this.#search.value.trim();
    this.#found = text ? await this.#actions.matches(text) : null;
    if (text === this.#search.value.trim()) this.#draw();
  }

  #draw() {
    if (this.#list.querySelector("form")) return; // a name is being edited
    const text = this.#search.value.trim().toLowerCase();
    const isShown = ({ id, title }) => this.#found?.has(id) || title.toLowerCase().includes(text);
    const shown = text ? this.#records.filter(isShown) : this.#records;
    const items = [];
    let group = "";
    for (const record of shown) {
      const name = age(record.updated);
      if (name !== group) items.push(h("li", { class: "age", role: "presentation" }, name));
      group = name;
      items.push(this.#item(record));
    }
    if (!items.length) items.push(h("li", { class: "age" }, text ? "Nothing found" : "No conversations yet"));
    this.#list.replaceChildren(...items);
  }

  #item(record) {
    const isCurrent = record.id === this.#current;
    const open = (event) => {
      event.preventDefault();
      this.#actions.open(record.id);
    };
    const link = h(
      "a",
      { href: `#${record.id}`, "aria-current": isCurrent ? "page" : null, on: { click: open } },
      record.title || "New chat",
    );
    const item = h("li", { class: this.#running.has(record.id) ? "item running" : "item" }, link);
    const more = button("dots", `More for ${record.title}`, () => this.#menu(more, item, record), {
      "aria-haspopup": "menu", "aria-expanded": "false",
    });
    link.addEventListener("dblclick", () => this.#rename(item, record));
    link.addEventListener("keydown", (event) => {
      if (event.key === "F2") this.#rename(item, record);
      if (event.key === "Delete") this.#actions.remove(record.id);
    });
    item.append(more);
    return item;
  }

  #menu(anchor, item, record) {
    const { remove, exportJson, exportMarkdown } = this.#actions;
    menu(anchor, [
      ["pencil", "Rename", () => this.#rename(item, record)],
      ["down", "Export as Markdown", () => exportMarkdown(record.id)],
      ["down", "Export as JSON", () => exportJson(record.id)],
      ["trash", "Delete", () => remove(record.id)],
    ]);
  }

  #rename(item, record) {
    const input = h("input", { value: record.title, "aria-label": "New name" });
    const form = h("form", {}, input);
    let isOver = false;
    const end = (isKept) => {
      if (isOver) return; // removing the field blurs it
      isOver = true;
      form.remove();
      const title = input.value.trim();
      if (isKept && title && title !== record.title) this.#actions.rename(record.id, title);
      else this.#draw();
    };
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      end(true);
    });
    input.addEventListener("blur", () => end(true));
    input.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation();
      end(false);
    });
    item.replaceChildren(form);
    input.select();
  }
}

function age(time) {
  const today = new Date().setHours(0, 0, 0, 0);
  if (time >= today) return "Today";
  if (time >= today - DAY_MS) return "Yesterday";
  if (time >= today - 7 * DAY_MS) return "Last 7 days";
  return new Intl.DateTimeFormat("en", { month: "long", year: "numeric" }).format(time);
}

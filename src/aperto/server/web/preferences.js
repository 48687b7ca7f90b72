// Small choices kept in this browser: the key, the theme, what new conversations start with.

import { DEFAULTS, EFFORTS } from "./settings.js";

function read(name) {
  try {
    return JSON.parse(localStorage.getItem(name));
  } catch {
    return null;
  }
}

function write(name, value) {
  try {
    localStorage.setItem(name, JSON.stringify(value));
  } catch {
    // A browser that keeps nothing still shows the page.
  }
}

/** The server's API key. */
export const key = {
  get: () => read("key") ?? "",
  set: (value) => write("key", value),
};

/** Settings of the last conversation, for the next one. */
export const lastSettings = {
  get() {
    const kept = { ...DEFAULTS, ...read("settings") };
    return EFFORTS.includes(kept.effort) ? kept : { ...kept, effort: DEFAULTS.effort };
  },
  set: (value) => write("settings", value),
};

/** "light", "dark" or "" for the system's; applied at once. `theme.js` applies it at the start. */
export const theme = {
  get: () => document.documentElement.dataset.theme,
  set(value) {
    document.documentElement.dataset.theme = value;
    write("theme", value);
  },
};

/** The text that was being written, by conversation; gone with the tab. */
export const draft = {
  get: (id) => sessionStorage.getItem(`draft-${id}`) ?? "",
  set(id, text) {
    if (text) sessionStorage.setItem(`draft-${id}`, text);
    else sessionStorage.removeItem(`draft-${id}`);
  },
};

/** Which drawers are open where there is room. */
export const openDrawers = {
  get: () => read("drawers") ?? { sidebar: true, panel: false },
  set: (value) => write("drawers", value),
};

/** Answers under way when the page went. */
export const unsaved = {
  put(nodes) {
    if (nodes.length) write("unsaved", [...(read("unsaved") ?? []), ...nodes]);
  },
  take() {
    const nodes = read("unsaved") ?? [];
    if (nodes.length) write("unsaved", []);
    return nodes;
  },
};

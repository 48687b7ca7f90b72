// What speaks up above the page: toasts, menus, the question for an API key.

import { h, icon } from "./dom.js";

const TOAST_MS = 7000;

/** A short message; with `action` {text, run} a button in it. */
export function toast(text, action = null) {
  const element = h("div", { class: "toast", role: "status" }, h("span", {}, text));
  const close = () => element.remove();
  if (action) {
    const run = () => {
      close();
      action.run();
    };
    element.append(h("button", { type: "button", class: "plain", on: { click: run } }, action.text));
  }
  document.getElementById("toasts").append(element);
  setTimeout(close, TOAST_MS);
}

/** A menu below `anchor` of items [icon, text, run]; arrow keys move, Esc closes. */
export function menu(anchor, items) {
  const element = h("div", { class: "menu", role: "menu", popover: "auto" });
  for (const [name, text, run] of items) {
    const click = () => {
      element.hidePopover();
      run();
    };
    element.append(h("button", { type: "button", role: "menuitem", on: { click } }, icon(name), text));
  }
  element.addEventListener("keydown", (event) => moveFocus(event, element));
  element.addEventListener("toggle", ({ newState }) => {
    if (newState !== "closed") return;
    anchor.setAttribute("aria-expanded", "false");
    element.remove();
  });
  document.body.append(element);
  element.showPopover();
  anchor.setAttribute("aria-expanded", "true");
  placeBelow(element, anchor.getBoundingClientRect());
  element.firstElementChild.focus();
}

function moveFocus(event, element) {
  const move = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!move) return;
  event.preventDefault();
  const items = [...element.children];
  items.at((items.indexOf(document.activeElement) + move) % items.length).focus();
}

function placeBelow(element, anchor) {
  const { width, height } = element.getBoundingClientRect();
  const left = Math.min(anchor.left, innerWidth - width - 8);
  const top = anchor.bottom + height + 4 < innerHeight ? anchor.bottom + 4 : anchor.top - height - 4;
  element.style.left = `${Math.max(left, 8)}px`;
  element.style.top = `${Math.max(top, 8)}px`;
}

/** Asks for the server's API key. Resolves to it, or to null where the user gives none. */
export function askKey(current, isWrong) {
  const input = h("input", {
    type: "password", id: "api-key", value: current, autocomplete: "off", required: true,
  });
  const why = isWrong ? "The server refused this key." : "This server asks for an API key.";
  const dialog = h(
    "dialog",
    { class: "ask", "aria-labelledby": "ask-title" },
    h("form", { method: "dialog" },
      h("h2", { id: "ask-title" }, "API key"),
      h("p", {}, `${why} It is kept in this browser and sent to this server alone.`),
      h("label", { for: "api-key", class: "offscreen" }, "API key"),
      input,
      h("footer", {},
        h("button", { type: "submit", class: "plain", value: "", formNoValidate: true }, "Cancel"),
        h("button", { type: "submit", class: "primary", value: "ok" }, "Save"))),
  );
  // Enter takes the first button otherwise.
  input.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    if (input.reportValidity()) dialog.close("ok");
  });
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "ok" ? input.value.trim() : null);
    });
  });
}

// Failed requests, in words that say what to do.

import { h, icon } from "./dom.js";

const TITLES = {
  0: "No connection",
  400: "The server cannot take this request",
  401: "An API key is needed",
  403: "Not allowed",
  404: "Not found",
  413: "Too much at once",
  429: "The server is busy",
  503: "The server is not ready",
};

function title({ status, code }) {
  if (code === "context_length_exceeded") return "The conversation is too long for the model";
  if (code === "connection_lost") return "Connection lost";
  if (code === "page_error") return "The page failed";
  return TITLES[status] ?? (status >= 500 ? "The server failed" : "The request failed");
}

/** A card with the reason and a way on. Actions: again(), key(). */
export function errorCard(error, { again, key }) {
  const retry = h("button", { type: "button", class: "plain", on: { click: again } }, "Try again");
  if (error.retryAfterS) countDown(retry, error.retryAfterS);
  const wayOn = error.status === 401
    ? h("button", { type: "button", class: "plain", on: { click: key } }, "Enter key")
    : retry;
  const small = [error.status || "", error.code || ""].filter(Boolean).join(" · ");
  return h(
    "section",
    { class: "error", role: "alert" },
    icon("warn"),
    h("div", {},
      h("h3", {}, title(error)),
      h("p", {}, error.message),
      h("footer", {}, wayOn, h("small", {}, small))),
  );
}

/** Keeps a button shut for the time that the server asked for. */
function countDown(element, seconds) {
  const text = element.textContent;
  element.disabled = true;
  const tick = () => {
    if (seconds <= 0) {
      element.disabled = false;
      element.textContent = text;
      return;
    }
    element.textContent = `${text} in ${seconds} s`;
    seconds -= 1;
    setTimeout(tick, 1000);
  };
  tick();
}

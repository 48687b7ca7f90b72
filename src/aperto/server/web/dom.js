// Elements, built from data: no HTML strings anywhere, so model output can never become markup.

const SVG = "http://www.w3.org/2000/svg";

/** An element. Keys of `props`: "class", "on" (listeners by event), properties, attributes. */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (key === "class") element.className = value;
    else if (key === "on") listen(element, value);
    else if (key in element && !key.includes("-") && key !== "list") element[key] = value;
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

function listen(element, listeners) {
  for (const [event, listener] of Object.entries(listeners)) {
    element.addEventListener(event, listener);
  }
}

// Strokes on a 16 by 16 grid.
const ICONS = {
  arrow: "M8 13V3.5M3.8 7.4 8 3.2l4.2 4.2",
  bars: "M3 13V9M6.5 13V3M10 13V6.5M13.2 13v-2.5",
  check: "m3 8.6 3.2 3.2L13 4.8",
  copy: "M5.5 5.5h7.5v7.5H5.5zM10.5 5.5V3H3v7.5h2.5",
  dots: "M3.2 8h.01M8 8h.01M12.8 8h.01",
  down: "m3.5 6 4.5 4.5L12.5 6",
  left: "M10 3.5 5.5 8l4.5 4.5",
  menu: "M2.5 4.5h11M2.5 8h11M2.5 11.5h7",
  moon: "M12.9 9.7A5.4 5.4 0 0 1 6.3 3.1a5.4 5.4 0 1 0 6.6 6.6Z",
  pencil: "m3 13 .6-2.8 7-7 2.2 2.2-7 7zM9.2 4.6l2.2 2.2",
  plus: "M8 3v10M3 8h10",
  redo: "M13 8a5 5 0 1 1-1.6-3.7M13 2.5v3h-3",
  right: "M6 3.5 10.5 8 6 12.5",
  sliders: "M2.5 5h5M11.5 5h2M9.5 3.2v3.6M2.5 11h2M8.5 11h5M6.5 9.2v3.6",
  stop: "M4.5 4.5h7v7h-7z",
  sun: "M8 5.2a2.8 2.8 0 1 0 0 5.6 2.8 2.8 0 0 0 0-5.6ZM8 1.5v1M8 13.5v1M1.5 8h1M13.5 8h1M3.4 3.4l.7.7M11.9 11.9l.7.7M3.4 12.6l.7-.7M11.9 4.1l.7-.7",
  system: "M2.5 3.5h11v7.5h-11zM6 13.5h4M8 11v2.5",
  tool: "M10.2 2.8a3.4 3.4 0 0 0-3.9 4.5L2.7 10.9l2.4 2.4 3.6-3.6a3.4 3.4 0 0 0 4.5-3.9l-2 2-2.2-.5-.5-2.2z",
  trash: "M3 4.5h10M6.5 4.5V3h3v1.5M4.5 4.5l.5 8.5h6l.5-8.5M6.8 7v3.5M9.2 7v3.5",
  warn: "M8 2.5 14 13H2zM8 6.5v3M8 11.2h.01",
  x: "m4 4 8 8M12 4l-8 8",
};

/** A small drawing, hidden from screen readers: its button has a label. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  const path = document.createElementNS(SVG, "path");
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("class", `icon icon-${name}`);
  svg.setAttribute("aria-hidden", "true");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/** A button with an icon, a label for everybody and, where `text` is given, visible text. */
export function button(name, label, click, { text = "", ...props } = {}) {
  return h(
    "button",
    { type: "button", title: label, "aria-label": label, on: { click }, ...props },
    icon(name),
    text ? h("span", {}, text) : null,
  );
}

/** Puts other drawings and words on a button made by `button`. */
export function relabel(element, name, label) {
  element.querySelector("svg").replaceWith(icon(name));
  element.title = label;
  element.setAttribute("aria-label", label);
}

/** Runs `work` once in the next frame, however often it is asked for before. */
export function eachFrame(work) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      work();
    });
  };
}

/** Copies text; also on plain http, where browsers hide the clipboard interface. */
export async function copyText(text) {
  if (navigator.clipboard) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      // Denied or without focus: the older way may still be allowed.
    }
  }
  const area = h("textarea", { value: text, class: "offscreen", readOnly: true });
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  return copied;
}

/** A button that copies what `text()` gives and says so for a moment. */
export function copyButton(text, label = "Copy") {
  const element = button("copy", label, async () => {
    const copied = await copyText(text());
    relabel(element, copied ? "check" : "warn", copied ? "Copied" : "Not copied");
    setTimeout(() => relabel(element, "copy", label), 1600);
  });
  return element;
}

/** Hands a file to the user. */
export function download(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

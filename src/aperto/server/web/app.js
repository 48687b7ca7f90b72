// The page: wires the library of conversations to what is seen and pressed.

import { fileName, toJson, toMarkdown } from "./archive.js";
import { Composer } from "./composer.js";
import { askKey, menu, toast } from "./dialogs.js";
import { button, download, eachFrame, h, relabel } from "./dom.js";
import { Drawers } from "./drawers.js";
import { Gauges } from "./gauges.js";
import { Library } from "./library.js";
import { draft, key, lastSettings, theme } from "./preferences.js";
import { SettingsForm, toolName } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { openStore } from "./store.js";
import { Thread } from "./thread.js";
import { Api, ApiError } from "./wire.js";

const JSON_TYPE = "application/json";
const SAVE_SETTINGS_MS = 400;
const TOUCH = matchMedia("(pointer: coarse)");
const at = (id) => document.getElementById(id);

class App {
  #api = new Api(key.get());
  #models = [];
  #tools = [];
  #saving = null;
  #asking = null;
  #isAnswering = false;
  #library;
  #sidebar;
  #thread;
  #composer;
  #form;
  #gauges;
  #drawers;
  #drawGauges = eachFrame(() => this.#showGauges());

  constructor(store) {
    this.#library = new Library(store, this.#api, {
      listChanged: () => this.#show(),
      answerChanged: (node) => this.#grown(node),
      answered: (run) => this.#answered(run),
    });
    this.#buttons();
    this.#sidebar = new Sidebar(at("conversations"), at("search"), {
      open: (id) => this.#go(id),
      rename: (id, title) => this.#library.rename(id, title),
      remove: (id) => this.#remove(id),
      exportJson: (id) => this.#exportJson(id),
      exportMarkdown: (id) => this.#exportMarkdown(id),
      matches: (text) => this.#library.search(text),
    });
    this.#thread = new Thread({ scroller: at("scroller"), root: at("thread"), toEnd: at("to-end") }, {
      list: (node) => this.#library.current.alternatives(node),
      show: (node) => this.#showVersion(node),
      edit: (node, text) => this.#whenFree(() => this.#say(text, node.parent)),
      again: (node) => this.#whenFree(() => this.#library.again(node)),
      key: () => this.#askKey(true),
    });
    this.#composer = new Composer(
      { form: at("composer"), input: at("input"), send: at("send"), efforts: at("effort") },
      {
        send: (text) => this.#say(text),
        stop: () => this.#library.run?.stop(),
        effort: (effort) => this.#set("effort", effort),
        editLast: () => this.#thread.editLast(),
      },
    );
    this.#form = new SettingsForm(at("settings"), (name, value) => this.#set(name, value));
    this.#gauges = new Gauges({
      speed: at("speed"), box: at("context"), meter: at("context-meter"), text: at("context-text"),
    });
    this.#listen();
    if (!store.isKept) toast("This browser keeps no data: conversations are gone with this tab.");
  }

  /** Shows what the address names, then asks for the models. */
  async start() {
    await this.#library.rescue();
    await this.#route();
    await this.#loadCatalogue();
  }

  #buttons() {
    const panel = () => this.#drawers.toggle("panel");
    const sidebar = () => this.#drawers.toggle("sidebar");
    const fresh = () => this.#go("");
    const buttons = {
      sidebar: button("menu", "Conversations", sidebar, { "aria-controls": "sidebar" }),
      panel: button("sliders", "Settings", panel, { "aria-controls": "panel" }),
    };
    at("bar-left").append(buttons.sidebar);
    at("bar-right").append(button("plus", "New chat (Ctrl+K)", fresh, { class: "fresh" }), buttons.panel);
    at("sidebar-buttons").append(button("plus", "New chat (Ctrl+K)", fresh), button("x", "Close", sidebar, { class: "close" }));
    at("panel-buttons").append(button("x", "Close settings", panel));
    at("to-end").append(button("down", "To the newest message", () => {}).firstChild);
    at("to-end").setAttribute("aria-label", "To the newest message");
    const more = button("dots", "Import, export", () => this.#archiveMenu(more), { "aria-haspopup": "menu" });
    const shade = button("system", "Theme: system", () => this.#nextTheme(shade));
    this.#labelTheme(shade);
    at("sidebar-footer").append(shade, more);
    at("panel-footer").append(
      h("button", { type: "button", class: "plain", on: { click: () => this.#askKey(false) } }, "API key"),
    );
    this.#drawers = new Drawers(
      { sidebar: at("sidebar"), panel: at("panel") },
      { buttons, veil: at("veil"), main: at("main") },
    );
  }

  #listen() {
    addEventListener("popstate", () => this.#route());
    addEventListener("keydown", (event) => this.#shortcut(event));
    at("input").addEventListener("input", () => draft.set(this.#library.current.id, this.#composer.text));
    at("model").addEventListener("change", ({ target }) => this.#set("model", target.value));
    at("import-file").addEventListener("change", ({ target }) => this.#import(target));
    at("settings").addEventListener("submit", (event) => event.preventDefault());
  }

  #shortcut(event) {
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "k") {
      event.preventDefault();
      this.#go("");
      this.#composer.focus();
    } else if (event.key === "Escape" && !document.querySelector("dialog[open], .menu")) {
      if (!this.#drawers.closeAll()) this.#library.run?.stop();
    }
  }

  // --- which conversation is shown

  #go(id) {
    if (this.#drawers.isNarrow) this.#drawers.closeAll();
    // Not by way of a hashchange event, which comes later than the next key.
    if (location.hash.slice(1) !== id) history.pushState(null, "", id ? `#${id}` : location.pathname);
    return this.#route();
  }

  async #route() {
    const id = location.hash.slice(1);
    if (!id || !(await this.#library.open(id))) {
      await this.#library.create(this.#fitting(lastSettings.get()));
    }
    this.#composer.text = draft.get(this.#library.current.id);
    this.#thread.toEnd();
    if (!TOUCH.matches) this.#composer.focus(); // there it would bring up the keyboard
  }

  #show() {
    const { records, current, running, run } = this.#library;
    this.#sidebar.show(records, current.id, running);
    this.#thread.show(current.path());
    this.#composer.show({ effort: current.record.settings.effort, isRunning: run !== null });
    this.#showSettings();
    this.#showGauges();
    at("welcome").hidden = !current.isEmpty;
    document.title = current.record.title ? `${current.record.title} · aperto` : "aperto";
  }

  #showVersion(node) {
    this.#whenFree(() => {
      this.#library.current.show(node);
      this.#library.keep();
      this.#show();
    });
  }

  // --- answers

  async #say(text, parent) {
    const { current } = this.#library;
    draft.set(current.id, "");
    const saying = this.#library.say(text, parent);
    history.replaceState(null, "", `#${current.id}`);
    this.#thread.toEnd();
    await saying;
  }

  /** Branches change only while nothing is being answered. */
  #whenFree(work) {
    if (this.#library.run) toast("Stop the answer first (Esc).");
    else work();
  }

  #grown(node) {
    this.#thread.changed(node);
    this.#drawGauges();
    if (!this.#isAnswering) this.#announce("The model is answering.");
    this.#isAnswering = true;
  }

  async #answered({ conversation, node }) {
    this.#isAnswering = false;
    const tokens = node.usage ? `, ${node.usage.output_tokens} tokens` : "";
    const words = { done: `Answer complete${tokens}.`, stopped: "Stopped." };
    this.#announce(words[node.state] ?? ""); // a failure's card speaks for itself
    const isShown = conversation === this.#library.current;
    if (node.error?.status === 401 && isShown && (await this.#askKey(true))) {
      await this.#library.again(node);
    }
  }

  #announce(text) {
    at("live").textContent = text;
  }

  // --- settings and models

  #set(name, value) {
    const { settings } = this.#library.current.record;
    settings[name] = value;
    lastSettings.set(settings);
    clearTimeout(this.#saving);
    this.#saving = setTimeout(() => this.#library.keep(), SAVE_SETTINGS_MS);
    if (name === "model") this.#showSettings();
    this.#showTools();
    this.#showGauges();
  }

  #model() {
    const { settings } = this.#library.current.record;
    return this.#models.find(({ id }) => id === settings.model) ?? null;
  }

  #showSettings() {
    const { settings } = this.#library.current.record;
    const names = this.#models.map(({ id }) => id);
    // A conversation may know a model that is not served now.
    if (settings.model && !names.includes(settings.model)) names.push(settings.model);
    at("model").replaceChildren(...names.map((id) => h("option", { value: id }, id)));
    at("model").value = settings.model;
    at("model").disabled = names.length === 0;
    if (!at("settings").contains(document.activeElement)) {
      this.#form.show(settings, this.#tools);
    }
    this.#showTools();
  }

  #showTools() {
    const { tools } = this.#library.current.record.settings;
    at("active-tools").textContent = tools.map(toolName).join(", ");
  }

  #showGauges() {
    this.#gauges.show(this.#library.current.path(), this.#model()?.context ?? null);
  }

  /** Settings whose model is one that is served. */
  #fitting(settings) {
    const names = this.#models.map(({ id }) => id);
    if (!names.length || names.includes(settings.model)) return settings;
    return { ...settings, model: names[0] };
  }

  async #loadCatalogue() {
    try {
      ({ models: this.#models, tools: this.#tools } = await this.#api.catalogue());
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (error.status === 401) await this.#askKey(this.#api.key !== "");
      else toast(error.message, { text: "Try again", run: () => this.#loadCatalogue() });
      return;
    }
    const { current } = this.#library;
    if (current.isEmpty) current.record.settings = this.#fitting(current.record.settings);
    this.#show();
  }

  /** Asks for the key, once at a time; resolves to whether one was given. */
  async #askKey(isWrong) {
    this.#asking ??= askKey(this.#api.key, isWrong && this.#api.key !== "");
    const given = await this.#asking;
    this.#asking = null;
    if (given === null) return false;
    this.#api.key = given;
    key.set(given);
    await this.#loadCatalogue();
    return true;
  }

  #nextTheme(element) {
    theme.set({ "": "light", light: "dark", dark: "" }[theme.get()]);
    this.#labelTheme(element);
  }

  #labelTheme(element) {
    const [name, word] = { light: ["sun", "light"], dark: ["moon", "dark"] }[theme.get()] ?? ["system", "system"];
    relabel(element, name, `Theme: ${word}`);
  }

  // --- removing, exporting, importing

  async #remove(id) {
    const title = this.#library.records.find((record) => record.id === id)?.title ?? "";
    const restore = await this.#library.remove(id);
    toast(`Deleted “${title}”.`, { text: "Undo", run: restore });
    if (id === this.#library.current.id) this.#go("");
    else await this.#library.refresh();
  }

  #archiveMenu(anchor) {
    menu(anchor, [
      ["down", "Export all as JSON", () => this.#exportAll()],
      ["plus", "Import JSON", () => at("import-file").click()],
    ]);
  }

  async #exportJson(id) {
    const { record, nodes } = await this.#library.read(id);
    download(fileName(record.title, "json"), JSON_TYPE, toJson([{ record, nodes: [...nodes.values()] }]));
  }

  async #exportMarkdown(id) {
    const conversation = await this.#library.read(id);
    const text = toMarkdown(conversation.record, conversation.path());
    download(fileName(conversation.record.title, "md"), "text/markdown", text);
  }

  async #exportAll() {
    const all = await Promise.all(this.#library.records.map(({ id }) => this.#library.read(id)));
    const data = all.map(({ record, nodes }) => ({ record, nodes: [...nodes.values()] }));
    download("aperto-conversations.json", JSON_TYPE, toJson(data));
  }

  async #import(input) {
    const [file] = input.files;
    input.value = "";
    if (!file) return;
    try {
      const count = await this.#library.import(await file.text());
      toast(count === 1 ? "One conversation added." : `${count} conversations added.`);
    } catch (error) {
      toast(error.message);
    }
  }
}

new App(await openStore()).start();

// Conversations kept in this browser: IndexedDB, or memory alone where the browser refuses.

const NAME = "aperto";
const VERSION = 1;

/** Opens the store; `isKept` says whether it outlives the page. */
export async function openStore() {
  try {
    return new DiskStore(await openDatabase());
  } catch {
    return new MemoryStore();
  }
}

function openDatabase() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, VERSION);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("conversations", { keyPath: "id" });
      const nodes = request.result.createObjectStore("nodes", { keyPath: "id" });
      nodes.createIndex("conversation", "conversation");
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
    request.onblocked = () => reject(new Error("another page holds an older store"));
  });
}

const result = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

class DiskStore {
  isKept = true;
  #database;

  constructor(database) {
    this.#database = database;
    database.onversionchange = () => database.close();
  }

  #table(name, mode = "readonly") {
    return this.#database.transaction(name, mode).objectStore(name);
  }

  /** Records of all conversations. */
  list() {
    return result(this.#table("conversations").getAll());
  }

  /** One record and its nodes; null where there is none. */
  async load(id) {
    const [record, nodes] = await Promise.all([
      result(this.#table("conversations").get(id)),
      result(this.#table("nodes").index("conversation").getAll(id)),
    ]);
    return record ? { record, nodes } : null;
  }

  /** Writes a record and some of its nodes and removes others, by id; all or nothing. */
  save(record, nodes = [], removed = []) {
    const write = this.#database.transaction(["conversations", "nodes"], "readwrite");
    write.objectStore("conversations").put(record);
    for (const node of nodes) write.objectStore("nodes").put(node);
    for (const id of removed) write.objectStore("nodes").delete(id);
    return new Promise((resolve, reject) => {
      write.oncomplete = () => resolve();
      write.onerror = write.onabort = () => reject(write.error);
    });
  }

  /** Removes a conversation with its nodes. */
  async remove(id) {
    const keys = await result(this.#table("nodes").index("conversation").getAllKeys(id));
    const nodes = this.#table("nodes", "readwrite");
    for (const key of keys) nodes.delete(key);
    await result(this.#table("conversations", "readwrite").delete(id));
  }

  /** Ids of the conversations in which some message has the text. */
  search(text) {
    const wanted = text.toLowerCase();
    const ids = new Set();
    return new Promise((resolve, reject) => {
      const request = this.#table("nodes").openCursor();
      request.onerror = () => reject(request.error);
      request.onsuccess = () => {
        const cursor = request.result;
        if (!cursor) return resolve(ids);
        if (says(cursor.value, wanted)) ids.add(cursor.value.conversation);
        return cursor.continue();
      };
    });
  }
}

class MemoryStore {
  isKept = false;
  #records = new Map();
  #nodes = new Map();

  async list() {
    return [...this.#records.values()];
  }

  async load(id) {
    const record = this.#records.get(id);
    return record ? { record, nodes: this.#of(id) } : null;
  }

  async save(record, nodes = [], removed = []) {
    this.#records.set(record.id, record);
    for (const node of nodes) this.#nodes.set(node.id, node);
    for (const id of removed) this.#nodes.delete(id);
  }

  async remove(id) {
    for (const node of this.#of(id)) this.#nodes.delete(node.id);
    this.#records.delete(id);
  }

  async search(text) {
    const found = [...this.#nodes.values()].filter((node) => says(node, text.toLowerCase()));
    return new Set(found.map((node) => node.conversation));
  }

  #of(id) {
    return [...this.#nodes.values()].filter((node) => node.conversation === id);
  }
}

function says(node, wanted) {
  const texts = node.role === "user" ? [node.text] : node.steps.map((step) => step.text);
  return texts.some((text) => text.toLowerCase().includes(wanted));
}

"use strict";

// Conversations in the browser's storage. Messages are stored one by one, as documents in them may be long.

const storage = {
  database: null,
  // other pages of this browser hear which conversation has changed
  others: new BroadcastChannel("snapkv-local"),

  async open() {
    const request = indexedDB.open("snapkv-local", 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("conversations", { keyPath: "id" });
      request.result.createObjectStore("messages", { keyPath: ["conversation", "n"] });
    };
    this.database = await result(request);
    this.database.onversionchange = () => this.database.close();
  },

  async all() {
    return result(this.database.transaction("conversations").objectStore("conversations").getAll());
  },

  async one(id) {
    return result(this.database.transaction("conversations").objectStore("conversations").get(id));
  },

  async messages(id) {
    const found = this.database.transaction("messages").objectStore("messages").getAll(ofOne(id));
    return (await result(found)).map(({ message }) => message);
  },

  // message is the n-th of them, or null where none has changed
  async save(conversation, n = -1, message = null) {
    const { id, title, created, library, held } = conversation;
    await this.write((open) => {
      open("conversations").put({ id, title, created, library, held, used: Date.now() });
      if (message !== null) open("messages").put({ conversation: id, n, message });
    });
    this.others.postMessage(id);
  },

  // messages from the n-th on; with all of them the conversation, too
  async remove(id, n = 0) {
    await this.write((open) => {
      open("messages").delete(ofOne(id, n));
      if (n === 0) open("conversations").delete(id);
    });
    this.others.postMessage(id);
  },

  write(change) {
    return new Promise((resolve, reject) => {
      const transaction = this.database.transaction(["conversations", "messages"], "readwrite");
      transaction.oncomplete = () => resolve();
      transaction.onabort = () => reject(transaction.error);
      change((name) => transaction.objectStore(name));
    });
  },
};

function ofOne(id, n = 0) {
  return IDBKeyRange.bound([id, n], [id, Infinity]);
}

function result(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

// Sheets of this browser, newest first: in IndexedDB, or in memory where the browser forbids that.

const DATABASE = "msf-serve";
const STORE = "sheets";
const MAX_SHEETS = 40;

const memory = new Map();
const opened = open();

function open() {
  return new Promise((resolve) => {
    try {
      const request = indexedDB.open(DATABASE, 1);
      request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id" });
      request.onsuccess = () => resolve(request.result);
      request.onerror = () => resolve(null);
      request.onblocked = () => resolve(null);
    } catch {
      resolve(null);
    }
  });
}

// Run `use` on the store and return its request's result, or null if the browser refuses.
async function transact(mode, use) {
  const database = await opened;
  if (!database) return null;
  return new Promise((resolve) => {
    try {
      const transaction = database.transaction(STORE, mode);
      const request = use(transaction.objectStore(STORE));
      transaction.oncomplete = () => resolve(request?.result ?? null);
      transaction.onabort = transaction.onerror = () => resolve(null); // such as a full disk
    } catch {
      resolve(null);
    }
  });
}

export async function listSheets() {
  const stored = (await transact("readonly", (store) => store.getAll())) ?? [];
  const all = new Map([...stored.map((sheet) => [sheet.id, sheet]), ...memory]);
  return [...all.values()].sort((one, other) => other.createdAt - one.createdAt).slice(0, MAX_SHEETS);
}

export async function keepSheet(sheet) {
  const key = await transact("readwrite", (store) => store.put(sheet));
  if (key === null) memory.set(sheet.id, sheet);
  const kept = new Set((await listSheets()).map(({ id }) => id));
  await transact("readwrite", (store) => {
    store.getAllKeys().onsuccess = ({ target }) => target.result.filter((id) => !kept.has(id)).forEach((id) => store.delete(id));
  });
}

export async function findSheet(query) {
  return (await listSheets()).find((sheet) => sheet.query === query) ?? null;
}

export async function forgetSheets() {
  memory.clear();
  await transact("readwrite", (store) => store.clear());
}

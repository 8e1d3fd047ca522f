// Building and finding elements.

export const byId = (id) => document.getElementById(id);

// Return a new element. Properties are assigned, except names with a dash and `role`, which become attributes.
export function element(name, properties = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes("-") || key === "role") node.setAttribute(key, value);
    else node[key] = value;
  }
  node.append(...children);
  return node;
}

// Object URLs of one view's files, released together.
export class FileUrls {
  #urls = new Map();

  of(file) {
    if (!this.#urls.has(file)) this.#urls.set(file, URL.createObjectURL(file));
    return this.#urls.get(file);
  }

  release() {
    for (const url of this.#urls.values()) URL.revokeObjectURL(url);
    this.#urls.clear();
  }
}

export function saveFile(file, name) {
  const url = URL.createObjectURL(file);
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000); // the browser reads it after the click
}

// Copy `text`, or select the text of `node` where the clipboard is not available; return whether it was copied.
export async function copyText(text, node) {
  // The clipboard API exists on secure origins only; the deprecated command works elsewhere.
  if (navigator.clipboard) return navigator.clipboard.writeText(text).then(() => true, () => false);
  const source = node ?? document.body.appendChild(element("pre", { textContent: text }));
  getSelection().selectAllChildren(source);
  const isCopied = document.execCommand("copy");
  if (source !== node) source.remove();
  return isCopied;
}

// Show `text` on a button for a moment.
export function flash(button, text) {
  button.dataset.text ??= button.textContent;
  button.textContent = text;
  setTimeout(() => { button.textContent = button.dataset.text; }, 1500);
}

export const nextTask = () => new Promise((resolve) => setTimeout(resolve));

export function announce(text) {
  byId("announcement").textContent = text;
}

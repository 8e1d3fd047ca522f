// The choice of a class: thumbnails in sets, and a combobox of all classes in groups. Both show the combobox's text.

import { Combobox } from "./combobox.js";
import { byId, element } from "./dom.js";

const MAX_CHIPS = 60; // classes without thumbnails; more are searched

let gallery = { sets: [], columns: 1, groups: [] };
let combobox = null;
let sets = []; // of the classes that are shown

export function setClass(label) {
  byId("prompt").value = label;
  markClass();
}

// Check the thumbnail of the class in the combobox, if it has one.
export function markClass() {
  for (const radio of document.getElementsByName("class")) radio.checked = radio.value === byId("prompt").value;
  byId("chosen").replaceChildren(
    thumbnail(byId("prompt").value) ?? "", byId("prompt").value, element("span", { className: "unseen", textContent: ", change the class" }),
  );
}

// Show the classes of a model.
export function showClasses(labels, ofModel) {
  gallery = ofModel;
  byId("prompt").placeholder = `Search ${labels.length.toLocaleString("en")} classes`;
  combobox.setGroups(gallery.groups);
  sets = gallery.sets.length ? gallery.sets : labels.length <= MAX_CHIPS ? [{ title: "Classes", labels }] : [];
  byId("sets").replaceChildren(...sets.map(setSwitch));
  byId("sets").hidden = sets.length < 2;
  byId("thumbnails").replaceChildren(...sets.map(setView));
  showSet(0);
}

function setSwitch({ title, labels }, position) {
  const total = title === "Image names" ? gallery.groups.slice(1).reduce((sum, group) => sum + group.labels.length, 0) : labels.length;
  const radio = element("input", { type: "radio", name: "set", checked: position === 0 });
  radio.addEventListener("change", () => showSet(position));
  return element("label", {}, radio, element("span", {}, `${title} `, element("small", { textContent: total.toLocaleString("en") })));
}

function setView({ title, file }) {
  return element("div", { className: file ? "set" : "set chips", role: "radiogroup", "aria-label": title });
}

// Fill a view with its classes: as soon as it can be seen, since on a phone it is below the fold.
function fill(view, labels) {
  const observer = new IntersectionObserver((entries) => {
    if (!entries.some(({ isIntersecting }) => isIntersecting)) return;
    observer.disconnect();
    view.append(...labels.map(choice));
  });
  observer.observe(byId("thumbnails"));
}

function choice(label) {
  const radio = element("input", { type: "radio", name: "class", value: label, checked: label === byId("prompt").value });
  radio.addEventListener("change", () => setClass(label));
  return element("label", { title: label }, radio, thumbnail(label) ?? "", element("span", { className: "label", textContent: label }));
}

function showSet(position) {
  [...byId("thumbnails").children].forEach((view, each) => { view.hidden = each !== position; });
  const view = byId("thumbnails").children[position];
  if (view?.childElementCount === 0) {
    if (sets[position].file) fill(view, sets[position].labels);
    else view.append(...sets[position].labels.map(choice));
  }
  markClass();
}

// Return the thumbnail of a class, or null if it has none.
function thumbnail(label) {
  const set = gallery.sets.find(({ labels }) => labels.includes(label));
  if (!set) return null;
  const position = set.labels.indexOf(label);
  const rows = Math.ceil(set.labels.length / gallery.columns);
  const share = (index, count) => (count > 1 ? `${(100 * index) / (count - 1)}%` : "0");
  const node = element("span", { className: "thumbnail", "aria-hidden": "true" });
  node.style.backgroundImage = `url("${set.file}")`;
  node.style.backgroundSize = `${100 * gallery.columns}% ${100 * rows}%`;
  node.style.backgroundPosition = `${share(position % gallery.columns, gallery.columns)} ${share(Math.floor(position / gallery.columns), rows)}`;
  return node;
}

// `onChange` is called when a class was picked or typed.
export function listenForClasses(onChange) {
  combobox = new Combobox(byId("prompt"), byId("options"), thumbnail, (label) => {
    setClass(label);
    onChange();
  });
  byId("prompt").addEventListener("input", markClass);
}

// A text field with a list of options in groups (the ARIA pattern "editable combobox with list autocomplete").

import { element } from "./dom.js";

const MAX_OPTIONS = 60;

export class Combobox {
  #input;
  #list;
  #picture;
  #onPick;
  #groups = [];
  #active = null; // the option that the arrow keys are on

  // `picture` returns a node for an option, or null; `onPick` takes the picked option.
  constructor(input, list, picture, onPick) {
    this.#input = input;
    this.#list = list;
    this.#picture = picture;
    this.#onPick = onPick;
    input.addEventListener("input", () => this.#open(input.value));
    input.addEventListener("click", () => {
      input.select();
      this.#open("");
    });
    input.addEventListener("blur", () => this.#close());
    input.addEventListener("keydown", (event) => this.#press(event));
    list.addEventListener("mousedown", (event) => event.preventDefault()); // keeps the focus in the field
    list.addEventListener("click", ({ target }) => {
      const option = target.closest("[role=option]");
      if (option) this.#pick(option);
    });
  }

  // Set the options: [{ title, labels }].
  setGroups(groups) {
    this.#groups = groups;
    this.#close();
  }

  #matches(text) {
    const words = text.trim().toLowerCase().split(/\s+/).filter(Boolean);
    const rank = (label) => (label.toLowerCase().startsWith(words[0] ?? "") ? 0 : 1);
    let room = MAX_OPTIONS;
    return this.#groups.map(({ title, labels }) => {
      const all = labels.filter((label) => words.every((word) => label.toLowerCase().includes(word)));
      const shown = all.sort((one, other) => rank(one) - rank(other)).slice(0, room);
      room -= shown.length;
      return { title, labels: shown };
    }).filter(({ labels }) => labels.length);
  }

  #open(text) {
    const matches = this.#matches(text);
    this.#list.replaceChildren(...matches.map(({ title, labels }, group) => {
      const heading = element("div", { className: "group", id: `group-${group}`, textContent: title });
      const options = labels.map((label, position) => element(
        "div", { role: "option", id: `option-${group}-${position}`, "aria-selected": "false" },
        this.#picture(label) ?? "", element("span", { textContent: label }),
      ));
      return element("div", { role: "group", "aria-labelledby": `group-${group}` }, heading, ...options);
    }));
    this.#list.hidden = matches.length === 0;
    this.#list.scrollTop = 0;
    this.#input.setAttribute("aria-expanded", String(!this.#list.hidden));
    this.#activate(null);
  }

  #close() {
    this.#list.hidden = true;
    this.#input.setAttribute("aria-expanded", "false");
    this.#activate(null);
  }

  #activate(option) {
    this.#active?.setAttribute("aria-selected", "false");
    this.#active = option;
    option?.setAttribute("aria-selected", "true");
    option?.scrollIntoView({ block: "nearest" });
    if (option) this.#input.setAttribute("aria-activedescendant", option.id);
    else this.#input.removeAttribute("aria-activedescendant");
  }

  #pick(option) {
    this.#close();
    this.#onPick(option.querySelector("span:last-child").textContent);
  }

  #press(event) {
    const isOpen = !this.#list.hidden;
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (!isOpen) this.#open("");
      const options = [...this.#list.querySelectorAll("[role=option]")];
      const by = event.key === "ArrowDown" ? 1 : -1;
      const from = this.#active ? options.indexOf(this.#active) : by === 1 ? -1 : 0;
      if (options.length) this.#activate(options[(from + by + options.length) % options.length]);
    } else if (event.key === "Enter" && this.#active) {
      event.preventDefault(); // picks; the next Enter submits
      this.#pick(this.#active);
    } else if (event.key === "Enter") {
      this.#close();
    } else if (event.key === "Escape" && isOpen) {
      event.preventDefault();
      this.#close();
    }
  }
}

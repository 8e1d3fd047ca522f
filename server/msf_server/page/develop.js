// The slider that takes every image of a sheet from its base to its last detail.

import { byId } from "./dom.js";

const LEAD_MS = 450; // the base alone; as in results.css
const DURATION_MS = 1350;
const UNASKED_AFTER_MS = 900;
const SLIDER_EVERY_MS = 90;
const prefersStill = matchMedia("(prefers-reduced-motion: reduce)");

let playing = null; // the timer that moves the slider

function set(share) {
  byId("develop").value = Math.round(100 * share);
  byId("stage").style.setProperty("--t", share);
}

function stop() {
  clearInterval(playing);
  byId("stage").classList.remove("developing");
  byId("play").setAttribute("aria-pressed", "false");
}

// Show the images as they are, finished or not.
export function developFully() {
  stop();
  set(1);
}

// The style sheet animates the images, and this the slider.
export function play() {
  if (prefersStill.matches) {
    set(byId("develop").value < 100 ? 1 : 0);
    return;
  }
  developFully();
  byId("stage").classList.add("developing");
  byId("play").setAttribute("aria-pressed", "true");
  const startedAt = performance.now();
  playing = setInterval(() => {
    const share = (performance.now() - startedAt - LEAD_MS) / DURATION_MS;
    if (share < 1) byId("develop").value = 100 * Math.max(share, 0);
    else developFully();
  }, SLIDER_EVERY_MS);
}

// Play by itself, once the images have been seen.
export function playLater() {
  setTimeout(() => { if (!prefersStill.matches && byId("develop").value === "100") play(); }, UNASKED_AFTER_MS);
}

export function listenForDevelopment() {
  byId("develop").addEventListener("input", ({ target }) => {
    stop();
    set(target.value / 100);
  });
  byId("play").addEventListener("click", play);
}

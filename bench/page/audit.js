// Lighthouse's median scores of a running service's page, and axe's violations at three widths in both colour schemes.
//
//     node bench/page/audit.js http://127.0.0.1:8000

import { createRequire } from "node:module";
import axe from "axe-core";
import { launch } from "chrome-launcher";
import lighthouse, { desktopConfig } from "lighthouse";
import { computeMedianRun } from "lighthouse/core/lib/median-run.js";
import puppeteer from "puppeteer-core";

const NUM_RUNS = 3; // of which the median counts
const MIN_SCORE = 0.95;
const MAX_LAYOUT_SHIFT = 0.05;
const WIDTHS = [1200, 390, 320];
const SCHEMES = ["light", "dark"];
const FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu"];

const url = process.argv[2] ?? "http://127.0.0.1:8000";
const executablePath = process.env.CHROME_PATH ?? "/usr/bin/chromium";
const failures = [];

function check(holds, text) {
  console.log(`${holds ? "ok    " : "FAILED"} ${text}`);
  if (!holds) failures.push(text);
}

async function auditSpeed() {
  const chrome = await launch({ chromePath: executablePath, chromeFlags: FLAGS });
  for (const [device, config] of [["phone", undefined], ["desktop", desktopConfig]]) {
    const runs = [];
    for (let run = 0; run < NUM_RUNS; run++) {
      runs.push((await lighthouse(url, { port: chrome.port, output: "json", logLevel: "error" }, config)).lhr);
    }
    const lhr = computeMedianRun(runs);
    for (const { title, score } of Object.values(lhr.categories)) check(score >= MIN_SCORE, `${device}: ${title} ${score}`);
    const shift = lhr.audits["cumulative-layout-shift"].numericValue;
    check(shift <= MAX_LAYOUT_SHIFT, `${device}: layout shift ${shift.toFixed(4)}`);
    const times = ["first-contentful-paint", "largest-contentful-paint", "total-blocking-time", "speed-index"];
    console.log(`       ${times.map((name) => `${name} ${lhr.audits[name].displayValue}`).join(", ")}`);
    for (const { auditRefs } of Object.values(lhr.categories)) {
      for (const { id, weight } of auditRefs) {
        const { score, title } = lhr.audits[id];
        if (weight > 0 && score !== null && score < 0.9) console.log(`       ${id} ${score}: ${title}`);
      }
    }
  }
  chrome.kill();
}

async function violations(page) {
  const { violations } = await page.evaluate(() => globalThis.axe.run());
  return violations.map(({ id, nodes }) => `${id} (${nodes.map(({ target }) => target.join(" ")).slice(0, 3).join("; ")})`);
}

async function auditAccessibility() {
  const browser = await puppeteer.launch({ executablePath, args: FLAGS });
  for (const width of WIDTHS) {
    for (const scheme of SCHEMES) {
      const page = await browser.newPage();
      await page.setViewport({ width, height: 800 });
      await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }, { name: "prefers-reduced-motion", value: "reduce" }]);
      await page.goto(url);
      await page.waitForSelector(".tile img");
      await page.evaluate(axe.source);
      const states = { opened: await violations(page) };
      await page.click("#prompt");
      states["class list"] = await violations(page);
      await page.keyboard.press("Escape");
      await page.click(".tile");
      states.lightbox = await violations(page);
      for (const [state, found] of Object.entries(states)) check(found.length === 0, `axe, ${width} px ${scheme}, ${state}: ${found.join(", ") || "clean"}`);
      await page.close();
    }
  }
  await browser.close();
}

await auditSpeed();
await auditAccessibility();
const { version } = createRequire(import.meta.url)("lighthouse/package.json");
console.log(`Lighthouse ${version}, axe ${axe.version}: ${failures.length ? `${failures.length} checks failed` : "all checks hold"}`);
process.exitCode = failures.length ? 1 : 0;

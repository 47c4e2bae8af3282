/**
 * A real Chromium without a window, as `npm run setup` installs it:
 *
 *     await using browser = await startChromium({ resolve: { "*.sandbox.test": "127.0.0.1:8443" }, trust: [caddy.issuer()] });
 *     const page = await browser.newPage(); // Playwright's: https://playwright.dev/docs/api/class-page
 *     await page.goto("https://web-200.sandbox.test/");
 *
 * `playwright-core` brings no browser and fetches none. A page is told of what it may not do by `page.on("console")`.
 * Start it after the bed and close it before, or the bed counts it as left behind.
 */
import { createHash, X509Certificate } from "node:crypto";
import { accessSync, constants } from "node:fs";
import { delimiter, join } from "node:path";
import { type Browser, chromium } from "playwright-core";

export interface ChromiumOptions {
  /** Where names lead, as ADDRESS:PORT each; `*` stands for any part of a name. All others lead nowhere. */
  resolve?: Record<string, string>;
  /** Certificates (PEM) in whose chain it trusts, besides those of public authorities. */
  trust?: readonly string[];
}

const NAMES = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
const OF_MACOS = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome";

export function startChromium({ resolve = {}, trust = [] }: ChromiumOptions = {}): Promise<Browser> {
  const rules = Object.entries(resolve).map(([name, place]) => `MAP ${name} ${place}`);
  const keys = trust.map((pem) => new X509Certificate(pem).publicKey.export({ type: "spki", format: "der" }));
  const hashes = keys.map((key) => createHash("sha256").update(key).digest("base64"));
  return chromium.launch({
    executablePath: findChromium(),
    chromiumSandbox: process.getuid?.() !== 0, // it refuses to be root in its sandbox
    args: [
      `--host-resolver-rules=${[...rules, "MAP * ~NOTFOUND", "EXCLUDE 127.0.0.1"].join(", ")}`,
      ...(hashes.length === 0 ? [] : [`--ignore-certificate-errors-spki-list=${hashes.join(",")}`]),
    ],
  });
}

function findChromium(): string {
  const folders = (process.env["PATH"] ?? "").split(delimiter);
  const places = [...NAMES.flatMap((name) => folders.map((folder) => join(folder, name))), OF_MACOS];
  const found = places.find((place) => {
    try {
      accessSync(place, constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
  if (found === undefined)
    throw new Error("chromium is missing; npm run setup installs it on Debian, else put it on PATH");
  return found;
}

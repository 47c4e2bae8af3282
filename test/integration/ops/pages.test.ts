/** The ops pages as people see them: in a browser, light and dark, on a phone, with thousands of sandboxes. */
import { mkdirSync } from "node:fs";
import axe from "axe-core";
import type { Browser, Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { newOperationId, newSandboxId } from "../../../shared/ids.ts";
import { formatLogin } from "../../../shared/logins.ts";
import { encodeFields } from "../../../shared/state/codec.ts";
import { createKeys } from "../../../shared/state/keys.ts";
import { type Ops, startOps } from "../../../workers/ops/server.ts";
import { startChromium } from "../../chromium.ts";
import { type Bed, failure, provisionOne, startBed } from "../fleet/harness.ts";

const PASSWORD = "correct horse battery";
/** Where to keep a picture of each page, for people to look at. */
const PICTURES = process.env["FLEET_TEST_PICTURES"];
const MANY = 3_000;

let bed: Bed;
let ops: Ops;
/** Of a fleet with thousands of sandboxes, which nobody works for. */
let big: Ops;
let browser: Browser;
let box: Awaited<ReturnType<typeof provisionOne>>;
/** Of an operation that failed. */
let failed: string;

beforeAll(async () => {
  const logins = [await formatLogin("operator", "olga", PASSWORD), await formatLogin("viewer", "vera", PASSWORD)];
  const env = { OPS_PORT: "0", OPS_LOGINS: logins.join() };
  bed = await startBed({ pve: { nodes: 2 }, env });
  if (bed.workers === null) throw new Error("the bed has no workers");
  ops = await startOps(bed.workers.context);
  const prefix = bed.keys.prefix.replace("}", "-big}");
  const crowd = await bed.startWorkers({ FLEET_PREFIX: prefix, FLEET_ROLES: "ops" });
  await fill(prefix);
  big = await startOps(crowd.context);
  box = await provisionOne(bed.fleet, {
    services: [{ name: "web", port: 80 }],
    ttlSeconds: 3_600,
    metadata: { for: "tests" },
  });
  const handle = await bed.fleet.provision({ template: "nowhere" });
  await failure(handle.result({ timeoutMs: 60_000 }), "template_not_found");
  failed = handle.id;
  await bed.fleet.nodes.cordon("pve2", { by: "tests", reason: "a new disk" });
  browser = await startChromium();
});
afterAll(async () => {
  await browser?.close();
  const keys = await bed.redis.keys(bed.keys.prefix.replace("}", "-big}:*"));
  await ops?.[Symbol.asyncDispose]();
  await big?.[Symbol.asyncDispose]();
  await bed.redis.del(...keys);
  await bed?.close();
});

async function fill(prefix: string): Promise<void> {
  const keys = createKeys(prefix);
  const pipeline = bed.redis.pipeline();
  for (let at = 0; at < MANY; at++) {
    const id = newSandboxId();
    const { set } = encodeFields({
      id,
      operation: newOperationId(),
      team: `team-${at % 7}`,
      template: "cmux-base",
      state: at % 10 === 0 ? "paused" : "running",
      node: `pve${1 + (at % 2)}`,
      vmid: 20_000 + at,
      hostname: `cmux-${20_000 + at}`,
      metadata: {},
      createdAt: Date.now() - 60_000 * at,
    });
    pipeline.hset(keys.sandbox(id), ...set).zadd(keys.sandboxes, Date.now() - 60_000 * at, id);
  }
  await pipeline.exec();
}

interface Look {
  dark?: boolean;
  phone?: boolean;
}

async function open(user: "olga" | "vera", { dark = false, phone = false }: Look = {}) {
  return browser.newContext({
    httpCredentials: { username: user, password: PASSWORD },
    colorScheme: dark ? "dark" : "light",
    viewport: phone ? { width: 390, height: 844 } : { width: 1_280, height: 900 },
    ...(phone ? { isMobile: true, hasTouch: true } : {}),
  });
}

/** What a page complains of: its own errors, what it may not load, what keeps people out, and sideways scrolling. */
async function problemsOf(page: Page, searched: boolean): Promise<string[]> {
  const violations = searched ? await keepsOut(page) : [];
  const wide = await page.evaluate(
    'Math.max(...[document.documentElement, ...document.querySelectorAll(".wide")].map((one) => one.scrollWidth - one.clientWidth))',
  );
  return [
    ...violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html.slice(0, 120)).join(" | ")}`),
    ...(wide === 0 ? [] : [`scrolls sideways by ${wide} px`]),
  ];
}

/** By https://github.com/dequelabs/axe-core; it takes a second a page. */
async function keepsOut(page: Page) {
  await page.evaluate(axe.source);
  return (await page.evaluate<axe.AxeResults>("axe.run()")).violations;
}

/** With the pages that are searched for what keeps people out; dark has other colours and nothing else. */
const LOOKS: [string, Look, readonly string[]][] = [
  ["light", {}, ["fleet", "sandboxes", "sandbox", "question"]],
  ["dark", { dark: true }, ["fleet", "operation"]],
  ["phone", { phone: true }, []],
];

test.each(LOOKS)("%s: every page is whole, readable and no wider than the screen", async (look, options, searched) => {
  await using context = await open("olga", options);
  const page = await context.newPage();
  const said: string[] = [];
  page.on("console", (message) => message.type() === "error" && said.push(message.text()));
  page.on("pageerror", (error) => said.push(error.message));
  const pages: Record<string, string> = {
    fleet: `${ops.url}/`,
    sandboxes: `${big.url}/sandboxes?q=cmux-2100`,
    sandbox: `${ops.url}/sandboxes/${box.sandboxId}`,
    operation: `${ops.url}/operations/${failed}`,
    batches: `${ops.url}/batches`,
    question: `${ops.url}/sandboxes/${box.sandboxId}/destroy`,
    "big fleet": `${big.url}/`,
  };
  const problems: Record<string, string[]> = {};
  for (const [name, url] of Object.entries(pages)) {
    await page.goto(url);
    if (PICTURES !== undefined) {
      mkdirSync(PICTURES, { recursive: true });
      await page.screenshot({ path: `${PICTURES}/${name}, ${look}.png`, fullPage: true });
    }
    problems[name] = await problemsOf(page, searched.includes(name));
  }
  expect(problems).toEqual(Object.fromEntries(Object.keys(pages).map((name) => [name, []])));
  expect(said).toEqual([]);
  const paper = await page.evaluate("getComputedStyle(document.body).backgroundColor");
  expect(paper).toBe(options.dark ? "rgb(18, 22, 28)" : "rgb(255, 255, 255)");
});

test("the board is whole, and asks nobody else for anything", async () => {
  await using context = await open("vera");
  const page = await context.newPage();
  const said: string[] = [];
  page.on("console", (message) => message.type() === "error" && said.push(message.text()));
  page.on("request", (request) => request.url().startsWith(ops.url) || said.push(request.url()));
  await page.goto(`${ops.url}/board`);
  await page.getByText("place").first().waitFor();
  expect(said).toEqual([]);
});

describe("with thousands of sandboxes", () => {
  test("the list is paged, filtered and searched", async () => {
    await using context = await open("vera");
    const page = await context.newPage();
    await page.goto(`${big.url}/sandboxes`);
    expect(await page.locator("tbody tr").count()).toBe(100);
    expect(await page.getByText(`${MANY} of ${MANY}, page 1 of 30`).isVisible()).toBe(true);
    await page.getByRole("link", { name: "Next page" }).click();
    expect(await page.getByText("page 2 of 30").isVisible()).toBe(true);
    await page.getByLabel("Search").fill("cmux-21234");
    await page.getByLabel("Search").press("Enter");
    expect(await page.locator("tbody tr").allInnerTexts()).toEqual([expect.stringContaining("21234")]);
    await page.getByLabel("Search").fill("");
    await page.getByLabel("State").selectOption("paused");
    await page.getByLabel("Team").fill("team-3");
    await page.getByRole("button", { name: "Show" }).click();
    const states = await page.locator("tbody tr td:nth-child(2)").allInnerTexts();
    expect([states.length > 10, new Set(states)]).toEqual([true, new Set(["paused"])]);
  });
});

describe("what happens", () => {
  test("shows without a reload; an operator destroys after being asked, a viewer can't", async () => {
    await using context = await open("olga");
    const page = await context.newPage();
    await page.goto(`${ops.url}/sandboxes/${box.sandboxId}`);
    await page.evaluate("window.seen = true");
    await page.getByRole("link", { name: "Destroy this sandbox" }).click();
    expect(await page.getByText(`Destroy sandbox ${box.sandboxId}`).isVisible()).toBe(true);
    await page.getByRole("link", { name: "No, back" }).click();
    expect((await bed.fleet.sandboxes.get(box.sandboxId)).state).toBe("running");

    await using other = await open("vera");
    const watching = await other.newPage();
    await watching.goto(`${ops.url}/sandboxes/${box.sandboxId}`);
    expect(await watching.getByText("Destroy this sandbox").count()).toBe(0);
    await watching.goto(`${ops.url}/sandboxes/${box.sandboxId}/destroy`);
    expect(watching.url()).toBe(`${ops.url}/`);
    await watching.goto(`${ops.url}/sandboxes/${box.sandboxId}`);
    await watching.evaluate("window.before = true");

    await page.getByRole("link", { name: "Destroy this sandbox" }).click();
    await page.getByRole("button", { name: "Yes, do it" }).click();
    expect(page.url()).toBe(`${ops.url}/sandboxes/${box.sandboxId}`);
    await watching.getByText("destroyed", { exact: true }).waitFor();
    expect(await watching.evaluate("window.before")).toBe(true);
  });

  test("a batch's progress moves while somebody looks", async () => {
    await using context = await open("vera");
    const page = await context.newPage();
    const queue = bed.workers?.context.queues.get("place");
    await queue?.pause();
    const batch = await bed.fleet.batch({ count: 3, template: "nowhere" }, { id: "looked-at" });
    await page.goto(`${ops.url}/batches`);
    const bar = page.getByRole("progressbar");
    expect([await bar.getAttribute("value"), await bar.getAttribute("max")]).toEqual(["0", "3"]);
    await queue?.resume();
    await batch.result({ timeoutMs: 60_000 });
    await page.locator('progress[value="3"]').waitFor();
    expect(await page.getByText("ended").isVisible()).toBe(true);
  });
});

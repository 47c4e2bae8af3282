/** What only a browser can tell: cookies in frames of other sites, whose pages may act, the page of who waits. */
import { once } from "node:events";
import { createServer, type Server } from "node:http";
import type { Browser, Frame, Page } from "playwright-core";
import { afterAll, beforeAll, expect, test } from "vitest";
import { WebSocketServer } from "ws";
import { toProxyConfig } from "../../../producers/cli/proxy-configs.ts";
import { DEFAULT_URL_PATTERN } from "../../../shared/config-gate.ts";
import { LINK_COOKIE } from "../../../shared/links.ts";
import { type Gate, startGate } from "../../../workers/gate/gate.ts";
import { type Caddy, startCaddy } from "../../caddy.ts";
import { startChromium } from "../../chromium.ts";
import { type Bed, provisionOne, run, startBed, until } from "../fleet/harness.ts";

const DOMAIN = "sandbox.test";
const SECRET = "s".repeat(40);
const PORT = 8_000;

let bed: Bed;
let gate: Gate;
let box: Awaited<ReturnType<typeof provisionOne>>;
let site: Awaited<ReturnType<typeof startSite>>;
let caddy: Caddy;
let browser: Browser;
let hostOf: (service: string) => string;

beforeAll(async () => {
  bed = await startBed({
    pve: { nodes: 1 },
    env: {
      PVE_PUBLIC_DOMAIN: DOMAIN,
      FLEET_ROLES: "worker,gate",
      GATE_PORT: "0",
      GATE_PROXY_SECRET: SECRET,
      GATE_APP_ORIGINS: "https://app.example",
    },
  });
  if (bed.workers === null) throw new Error("the bed has no workers");
  gate = await startGate(bed.workers.context);
  box = await provisionOne(bed.fleet, {
    wakeOnHttp: true,
    services: [
      { name: "vscode", port: PORT },
      { name: "open", port: PORT, auth: "none" },
    ],
  });
  hostOf = (service) => `${service}-${box.vmid}.${DOMAIN}`;
  site = await startSite(box.address);
  const printed = toProxyConfig("caddy", {
    gate: new URL(gate.url).host,
    domain: DOMAIN,
    pattern: DEFAULT_URL_PATTERN,
    tls: "internal",
    dnsProvider: "",
  });
  // Sites of others: each says that it is theirs.
  const others =
    'app.example, evil.example {\n\ttls internal\n\theader Content-Type text/html\n\trespond "<title>theirs</title>"\n}\n';
  caddy = await startCaddy(printed + others, SECRET);
  browser = await startChromium({
    resolve: { [`*.${DOMAIN}`]: `127.0.0.1:${caddy.port}`, "*.example": `127.0.0.1:${caddy.port}` },
    trust: [caddy.issuer()],
  });
});
afterAll(async () => {
  await browser?.close();
  await caddy?.[Symbol.asyncDispose]();
  await gate?.[Symbol.asyncDispose]();
  await site?.[Symbol.asyncDispose]();
  await bed?.close();
});

/** A service with a page, which remembers who acted on it, and an echo over WebSocket. */
async function startSite(address: string) {
  const acts: string[] = [];
  const server: Server = createServer((request, response) => {
    if (request.method !== "GET") acts.push(`${request.method} ${request.headers.origin}`);
    response.setHeader("content-type", "text/html");
    response.end(`<title>service</title>${request.url}`);
  });
  const sockets = new WebSocketServer({ server });
  sockets.on("connection", (socket) =>
    socket.on("message", (data, isBinary) => socket.send(data, { binary: isBinary })),
  );
  server.listen(PORT, address);
  await once(server, "listening");
  return {
    acts,
    async [Symbol.asyncDispose]() {
      for (const socket of sockets.clients) socket.terminate();
      server.close();
      server.closeAllConnections();
      await once(server, "close");
    },
  };
}

const urlOf = (service: string, path = "/") => `https://${hostOf(service)}${path}`;

/** Once more where an interface of this machine, which others use, has changed meanwhile: Chromium gives up then. */
async function visit(page: Page, url: string): Promise<void> {
  await page.goto(url).catch((error: unknown) => {
    if (!String(error).includes("ERR_NETWORK_CHANGED")) throw error;
    return page.goto(url);
  });
}

/** What a page hears back over a WebSocket, or that it got none. */
const echo = (page: Page | Frame, url: string) =>
  page.evaluate(
    (at) =>
      new Promise<string>((resolve) => {
        const socket = new WebSocket(at);
        socket.onopen = () => socket.send("hello");
        socket.onmessage = ({ data }) => {
          resolve(data);
          socket.close();
        };
        socket.onerror = () => resolve("refused");
      }),
    url.replace("https:", "wss:"),
  );

/** Sends with the visitor's cookies what needs no preflight, as pages of any site can; the status is hidden from the page. */
async function act(from: Page | Frame, url: string): Promise<number> {
  const page = "page" in from ? from.page() : from;
  const [response] = await Promise.all([
    page.waitForResponse((one) => one.url() === url && one.request().method() === "POST"),
    from.evaluate((at) => fetch(at, { method: "POST", mode: "no-cors", credentials: "include" }).then(() => {}), url),
  ]);
  return response.status();
}

async function frameIn(page: Page, src: string): Promise<Frame> {
  await page.evaluate(`new Promise((resolve) => {
    const frame = document.createElement("iframe");
    frame.src = ${JSON.stringify(src)};
    frame.onload = () => resolve();
    document.body.append(frame);
  })`);
  const frame = page.frames().at(-1);
  if (!frame) throw new Error(`no frame of ${src}`);
  return frame;
}

test("a link opens its service in a frame of the app, whose cookie no script and no other site's page has", async () => {
  const { url } = await run(bed.fleet, "link", { sandboxId: box.sandboxId, name: "vscode", path: "/start" });
  await using context = await browser.newContext();
  const page = await context.newPage();
  await visit(page, "https://app.example/");
  const frame = await frameIn(page, url);
  expect([await frame.title(), frame.url()]).toEqual(["service", urlOf("vscode", "/start")]);
  expect(await frame.evaluate("document.cookie")).toBe("");
  const cookie = (await context.cookies()).find(({ name }) => name === LINK_COOKIE);
  expect(cookie).toMatchObject({ httpOnly: true, secure: true, sameSite: "None", partitionKey: "https://app.example" });
  expect(await echo(frame, urlOf("vscode", "/ws"))).toBe("hello");
  expect([await act(frame, urlOf("vscode")), await act(page, urlOf("vscode"))]).toEqual([200, 200]);
  expect(await echo(page, urlOf("vscode", "/ws"))).toBe("hello");
  expect(site.acts.splice(0)).toEqual([`POST https://${hostOf("vscode")}`, "POST https://app.example"]);
  // A sibling in a frame of the same app has the cookie sent; another site's page has not.
  const sibling = await frameIn(page, urlOf("open"));
  const evil = await context.newPage();
  await visit(evil, "https://evil.example/");
  expect([await act(sibling, urlOf("vscode")), await act(evil, urlOf("vscode"))]).toEqual([403, 401]);
  for (const other of [sibling, evil]) expect(await echo(other, urlOf("vscode", "/ws"))).toBe("refused");
  expect(await (await frameIn(evil, urlOf("vscode"))).title()).toBe("401 Unauthorized");
  expect(site.acts).toEqual([]);
});

test("a sibling's page can't act with a visitor's cookie, nor put one of its own in its place", async () => {
  const { url } = await run(bed.fleet, "link", { sandboxId: box.sandboxId, name: "vscode" });
  await using context = await browser.newContext();
  const page = await context.newPage();
  await visit(page, url);
  const sibling = await context.newPage();
  await visit(sibling, urlOf("open"));
  // Of the same site, so that the cookie is sent along: without it, the answer were 401.
  expect(await act(sibling, urlOf("vscode"))).toBe(403);
  expect(await echo(sibling, urlOf("vscode", "/ws"))).toBe("refused");
  expect(site.acts).toEqual([]);
  for (const cookie of [`${LINK_COOKIE}=x`, `=${LINK_COOKIE}=x`, `${LINK_COOKIE.toLowerCase()}=x`])
    await sibling.evaluate(`document.cookie = ${JSON.stringify(`${cookie}; Domain=${DOMAIN}; Path=/; Secure`)}`);
  await page.reload();
  expect(await page.title()).toBe("service");
});

test("who opens what sleeps sees a page that becomes the service's by itself", async () => {
  await run(bed.fleet, "power", { sandboxId: box.sandboxId, action: "stop" });
  await site[Symbol.asyncDispose]();
  await using context = await browser.newContext();
  const page = await context.newPage();
  const began = performance.now();
  await visit(page, urlOf("open", "/deep?a=1"));
  expect(await page.title()).toBe("Waking up");
  expect(performance.now() - began).toBeGreaterThan(900);
  const { address = "" } = await until(async () => {
    const now = await bed.fleet.sandboxes.get(box.sandboxId);
    return now.state === "running" && now;
  }, "the start");
  site = await startSite(address);
  await until(async () => (await page.title().catch(() => "")) === "service", "the service's page"); // it is navigating meanwhile
  expect(page.url()).toBe(urlOf("open", "/deep?a=1"));
});

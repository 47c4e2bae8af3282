/** Answers that PVE does not give: those of a proxy in front of it, broken ones, and those of something else altogether. */
import type { ServerResponse } from "node:http";
import { setTimeout as delay } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { FleetErrorCode } from "../../../shared/errors.ts";
import { createPveApi, type PveApi } from "../../../workers/pve/api.ts";
import { createPveHttp, type PveHttp } from "../../../workers/pve/http.ts";
import { type Scripted, startScripted } from "./scripted.ts";
import { call, failure, node, vmid } from "./stand-in.ts";

const SECRET = "11111111-2222-3333-4444-555555555555";
let answer: (response: ServerResponse) => void;
let server: Scripted;
let http: PveHttp;
let api: PveApi;
beforeAll(async () => {
  server = await startScripted((response) => answer(response));
  http = createPveHttp({
    hosts: [server.url],
    token: `root@pam!fleet=${SECRET}`,
    tls: { verify: true, fingerprint: server.fingerprint },
  });
  api = createPveApi(http);
});
afterAll(async () => {
  await http.close();
  await server[Symbol.asyncDispose]();
});

const page = (status: number, title: string, server: string) => (response: ServerResponse) =>
  response
    .writeHead(status, title, { "content-type": "text/html", server })
    .end(`<html>\r\n<head><title>${status} ${title}</title></head><body><center>${server}</center></body></html>`);
const json = (body: unknown) => (response: ServerResponse) =>
  response.writeHead(200, { "content-type": "application/json;charset=UTF-8" }).end(JSON.stringify(body));
const GIB = 1_073_741_824;

/** Sends chunks until nobody listens any more, as a proxy for a download would. */
async function endless(response: ServerResponse): Promise<void> {
  response.writeHead(200, { "content-type": "application/json", "content-length": String(4 * GIB) });
  const chunk = Buffer.alloc(1_048_576, "x");
  while (!response.destroyed) {
    response.write(chunk);
    await delay(0);
  }
}

const BAD: [string, (response: ServerResponse) => void, FleetErrorCode, RegExp][] = [
  [
    "a proxy's 502",
    page(502, "Bad Gateway", "nginx"),
    "pve_bad_reply",
    /not PVE's own: status 502, a page titled "502 Bad Gateway"/,
  ],
  ["a proxy's 503", page(503, "Service Unavailable", "haproxy"), "pve_bad_reply", /status 503/],
  ["a login page", page(200, "OK", "Apache"), "pve_bad_reply", /is not PVE's JSON, a page titled "200 OK"/],
  ["a proxy's 403", page(403, "Forbidden", "nginx"), "pve_bad_reply", /status 403/],
  [
    "a redirect",
    (response) => response.writeHead(301, { location: "https://127.0.0.1:1/elsewhere" }).end(),
    "pve_bad_reply",
    /a redirect to https:\/\/127\.0\.0\.1:1\/elsewhere; PVE_API_URL must be/,
  ],
  ["nothing", (response) => response.writeHead(200).end(), "pve_bad_reply", /is empty/],
  ["a status without a word", (response) => response.writeHead(500, " ").end(), "pve_bad_reply", /says nothing/],
  ["JSON without data", json({ success: 1 }), "pve_bad_reply", /is not PVE's JSON/],
  ["JSON of another shape", json({ data: ["no", "object"] }), "pve_bad_reply", /is not what PVE gives/],
  ["JSON that is cut off", (response) => response.end('{"data":{"version":"8'), "pve_bad_reply", /is not PVE's JSON/],
  [
    "fewer bytes than were announced",
    (response) => {
      response.writeHead(200, { "content-length": "1000" });
      response.write('{"data":', () => response.destroy());
    },
    "node_unreachable",
    /no answer from PVE/,
  ],
  [
    "a body that stops in the middle",
    (response) => {
      response.writeHead(200, { "content-length": "1000" });
      response.write('{"data":');
    },
    "node_unreachable",
    /no answer within 300 ms/,
  ],
  ["a body without end", (response) => void endless(response), "node_unreachable", /more than \d+ MiB/],
  [
    "headers without end",
    (response) => response.writeHead(200, { "x-long": "x".repeat(200_000) }).end("{}"),
    "node_unreachable",
    /Headers Overflow/,
  ],
];

describe("an answer that PVE does not give", () => {
  it.each(BAD)("%s", async (name, script, code, says) => {
    server.requests.length = 0;
    answer = script;
    const soon = { ...call(), ...(name.includes("stops") ? { deadlineMs: 300 } : {}) };
    const read = await failure(api.version(soon));
    expect(read).toMatchObject({ code });
    expect(String(read)).toMatch(says);
    // A change may have been made all the same.
    const change = await failure(api.lxc(node("pve1"), vmid(201)).start(soon));
    expect(change).toMatchObject({ code: "outcome_unknown", policy: "look_first", facts: { node: "pve1", vmid: 201 } });
    expect(String(read) + String(change) + JSON.stringify([read, change])).not.toContain(SECRET);
    // A read is sent again at most once, a change never.
    expect(server.requests.filter((one) => one.startsWith("POST"))).toHaveLength(1);
  });
});

it("a proxy's 401 page is told as PVE's refusal of the token", async () => {
  answer = page(401, "Unauthorized", "nginx");
  expect(await failure(api.version(call()))).toMatchObject({ code: "unauthorized" });
});

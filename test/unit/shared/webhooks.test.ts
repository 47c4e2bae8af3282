import { randomBytes } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { verifyWebhook, type WebhookRequest } from "../../../producers/webhooks.ts";
import { loadWorkerConfig } from "../../../shared/config.ts";
import { FleetError } from "../../../shared/errors.ts";
import { toSignatures } from "../../../shared/webhooks.ts";

const SECRET = `whsec_${randomBytes(32).toString("base64")}`;
const load = (webhooks: unknown) =>
  loadWorkerConfig({
    REDIS_URL: "redis://localhost",
    FLEET_SECRET_KEY: "ab".repeat(32),
    PVE_API_URL: "https://pve1:8006",
    PVE_API_TOKEN: "cmux@pve!fleet=12345678-1234-1234-1234-123456789abc",
    FLEET_WEBHOOKS: typeof webhooks === "string" ? webhooks : JSON.stringify(webhooks),
  }).FLEET_WEBHOOKS;
const good = { name: "app", url: "https://app.example.com/hooks?k=v", secrets: [SECRET] };

function problemOf(webhooks: unknown): string {
  try {
    load(webhooks);
  } catch (error) {
    if (error instanceof FleetError) return error.text;
    throw error;
  }
  throw new Error("it took them");
}

test("targets are read from JSON or a file with it", () => {
  const [target] = load([good]);
  expect(target).toMatchObject({ name: "app", url: new URL(good.url), attempts: 15, allowPrivate: [] });
  expect(target?.secrets).toEqual([Buffer.from(SECRET.slice(6), "base64")]);
  const folder = mkdtempSync(join(tmpdir(), "fleet-webhooks-"));
  const file = join(folder, "webhooks.json");
  writeFileSync(file, JSON.stringify([good]));
  expect(load(file)).toEqual([target]);
  rmSync(folder, { recursive: true });
});

test("each problem names the entry and the field, never what was given", () => {
  const planted = "planted-value";
  const problems: [unknown, RegExp][] = [
    [planted, /^FLEET_WEBHOOKS must be JSON, or a readable file/],
    [[{ ...good, name: `${planted}!` }], /entry 1, name: must be 1 to 40/],
    [[good, { ...good, name: "b", url: planted }], /entry 2 \(b\), url: must be a URL/],
    [[{ ...good, url: `http://${planted}` }], /entry 1 \(app\), url: must be https:\/\/; http/],
    [[{ ...good, url: `ftp://${planted}`, allowPrivate: ["10.0.0.0/8"] }], /url: must be https/],
    [[{ ...good, url: `https://${planted}:x@example.com` }], /url: may hold no user/],
    [[{ ...good, secrets: [planted] }], /entry 1 \(app\), secrets\.0: must be whsec_/],
    [[{ ...good, secrets: [`whsec_${btoa(planted)}`] }], /secrets\.0: must be 24 to 64 bytes/],
    [[{ ...good, secrets: [] }], /secrets: needs one to three/],
    [[{ ...good, types: [planted] }], /types\.0: /],
    [[{ ...good, allowPrivate: [planted] }], /allowPrivate\.0: must be networks/],
    [[{ ...good, team: ` ${planted}` }], /team: must be/],
    [[good, good], /has two targets named app/],
    [{ [planted]: 1 }, /must be JSON, or a readable/],
  ];
  for (const [webhooks, expected] of problems) {
    const text = problemOf(webhooks);
    expect(text).toMatch(expected);
    expect(text).not.toContain(planted);
    expect(text).not.toContain(SECRET);
  }
  const both = problemOf([
    { ...good, secrets: [planted] },
    { ...good, name: "b", attempts: 0 },
  ]);
  expect(both).toMatch(/entry 1 \(app\), secrets\.0.*\n.*entry 2 \(b\), attempts/);
});

test("a message is taken only as its sender signed it, and lately", () => {
  const body = JSON.stringify({ type: "webhook.test", timestamp: "", data: {} });
  const timestampSec = 1_700_000_000;
  const signature = toSignatures([Buffer.from(SECRET.slice(6), "base64")], { id: "evt_1-1", timestampSec, body });
  const headers = {
    "webhook-id": "evt_1-1",
    "webhook-timestamp": String(timestampSec),
    "webhook-signature": `v2,x ${signature}`,
  };
  const now = timestampSec * 1_000;
  const verify = (more: Partial<WebhookRequest> = {}, at = now, secret: string | string[] = SECRET) =>
    verifyWebhook({ headers, body, ...more }, secret, { now: at });
  expect(verify()).toEqual({ id: "evt_1-1", type: "webhook.test", data: {}, event: null });
  expect(verify({ headers: new Headers(headers), body: Buffer.from(body) })).toMatchObject({ id: "evt_1-1" });
  expect(verify({}, now, [`whsec_${randomBytes(32).toString("base64")}`, SECRET])).toMatchObject({ id: "evt_1-1" });
  const wrong: (() => unknown)[] = [
    () => verify({ body: `${body} ` }),
    () => verify({ headers: { ...headers, "webhook-id": "evt_1-2" } }),
    () => verify({ headers: { ...headers, "webhook-timestamp": String(timestampSec + 1) } }),
    () => verify({ headers: { ...headers, "webhook-signature": "v1," } }),
    () => verify({ headers: { ...headers, "webhook-signature": signature.replace("v1,", "v1a,") } }),
    () => verify({ headers: {} }),
    () => verify({}, now + 301_000),
    () => verify({}, now - 301_000),
    () => verify({}, now, `whsec_${randomBytes(32).toString("base64")}`),
  ];
  for (const attempt of wrong) expect(attempt).toThrow("signature_invalid");
  expect(() => verify({}, now, "planted-value")).toThrow(/not_configured.*whsec_/);
});

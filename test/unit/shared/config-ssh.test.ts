import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { loadWorkerConfig } from "../../../shared/config.ts";
import { FleetError } from "../../../shared/errors.ts";

const BASE = {
  REDIS_URL: "redis://localhost:6379",
  FLEET_SECRET_KEY: "ab".repeat(32),
  PVE_API_URL: "https://pve1:8006",
  PVE_API_TOKEN: "cmux@pve!fleet=12345678-1234-1234-1234-123456789abc",
};
const PEM = "-----BEGIN OPENSSH PRIVATE KEY-----\nc2VjcmV0LXNlY3JldA==\n-----END OPENSSH PRIVATE KEY-----";
const PIN = `SHA256:${"a".repeat(42)}E`;
const GOOD = { ...BASE, FLEET_SSH_KEY: PEM, FLEET_SSH_HOST_KEYS: `pve1=${PIN}` };

const folder = mkdtempSync(join(tmpdir(), "config-ssh-"));
afterAll(() => rmSync(folder, { recursive: true }));

function refused(env: Record<string, string>): string {
  try {
    loadWorkerConfig({ ...GOOD, ...env });
  } catch (error) {
    if (error instanceof FleetError) return error.text;
    throw error;
  }
  throw new Error("it took them");
}

test("without a key there is no SSH, and root on port 22 is what is meant with one", () => {
  expect(loadWorkerConfig(BASE)).toMatchObject({ FLEET_SSH_USER: "root", FLEET_SSH_PORT: 22 });
  expect(loadWorkerConfig(BASE).FLEET_SSH_KEY).toBeUndefined();
});

test("the key may be a path, a text, or a text with \\n for its line ends", () => {
  const path = join(folder, "key");
  writeFileSync(path, PEM);
  for (const FLEET_SSH_KEY of [path, PEM, PEM.replaceAll("\n", "\\n")]) {
    expect(loadWorkerConfig({ ...GOOD, FLEET_SSH_KEY }).FLEET_SSH_KEY).toBe(`${PEM}\n`);
  }
});

test("hosts and host keys by node", () => {
  const config = loadWorkerConfig({
    ...GOOD,
    FLEET_SSH_HOSTS: "pve1=10.0.0.1, pve2=n2.lan:2222,pve3=[fd00::3]:22,pve4=fd00::4",
    FLEET_SSH_HOST_KEYS: `pve1=${PIN},pve1=${PIN}=,pve2=${PIN}`,
  });
  expect([...(config.FLEET_SSH_HOSTS ?? [])]).toEqual([
    ["pve1", { host: "10.0.0.1" }],
    ["pve2", { host: "n2.lan", port: 2222 }],
    ["pve3", { host: "fd00::3", port: 22 }],
    ["pve4", { host: "fd00::4" }],
  ]);
  expect([...(config.FLEET_SSH_HOST_KEYS ?? [])]).toEqual([
    ["pve1", [PIN, PIN]],
    ["pve2", [PIN]],
  ]);
});

test.each([
  ["FLEET_SSH_KEY", "/nonexistent/key"],
  ["FLEET_SSH_KEY", "not a key"],
  ["FLEET_SSH_KEY", PEM.replaceAll("PRIVATE", "PUBLIC")],
  ["FLEET_SSH_USER", "root; id"],
  ["FLEET_SSH_USER", "-oProxyCommand=id"],
  ["FLEET_SSH_PORT", "0"],
  ["FLEET_SSH_PORT", "ssh"],
  ["FLEET_SSH_HOSTS", "pve1"],
  ["FLEET_SSH_HOSTS", "pve1=a b"],
  ["FLEET_SSH_HOSTS", "pve1=host:99999"],
  ["FLEET_SSH_HOSTS", "pve1=host:"],
  ["FLEET_SSH_HOSTS", "pve1=[host]:22"],
  ["FLEET_SSH_HOSTS", "pve_1=host"],
  ["FLEET_SSH_HOSTS", "pve1=-host"],
  ["FLEET_SSH_HOSTS", "pve1=a,pve1=b"],
  ["FLEET_SSH_HOST_KEYS", "pve1=MD5:aa:bb"],
  ["FLEET_SSH_HOST_KEYS", "SHA256:short"],
  ["FLEET_SSH_HOST_KEYS", "pve1=SHA256:short"],
  ["FLEET_SSH_KNOWN_HOSTS", "/nonexistent/known_hosts"],
])("%s=%s is refused by name, without its value", (name, value) => {
  const text = refused({ [name]: value });
  expect(text.startsWith(`${name} must be`)).toBe(true);
  if (value.length > 4) expect(text).not.toContain(value);
});

test("settings without a key, and a key without host keys, are told with the way out", () => {
  expect(refused({ FLEET_SSH_KEY: "" })).toMatch(/^FLEET_SSH_KEY is missing; FLEET_SSH_HOST_KEYS is for SSH/);
  expect(refused({ FLEET_SSH_HOST_KEYS: "" })).toMatch(
    /^FLEET_SSH_HOST_KEYS is missing; .*ssh-keygen.*FLEET_SSH_KNOWN_HOSTS/,
  );
});

test("all that is bad is told at once", () => {
  const text = refused({ FLEET_SSH_KEY: "x", FLEET_SSH_PORT: "x", FLEET_SSH_HOSTS: "x", PVE_API_URL: "x" });
  for (const name of ["FLEET_SSH_KEY", "FLEET_SSH_PORT", "FLEET_SSH_HOSTS", "PVE_API_URL"])
    expect(text).toContain(`${name} must`);
});

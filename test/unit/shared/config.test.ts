import { describe, expect, test } from "vitest";
import { loadSharedConfig, loadWorkerConfig } from "../../../shared/config.ts";
import { FleetError } from "../../../shared/errors.ts";
import { formatLogin } from "../../../shared/logins.ts";

const KEY = "ab".repeat(32);
const UUID = "12345678-1234-1234-1234-123456789abc";
const GOOD = {
  REDIS_URL: "redis://localhost:6379",
  FLEET_SECRET_KEY: KEY,
  PVE_API_URL: "https://pve1:8006",
  PVE_API_TOKEN: `cmux@pve!fleet=${UUID}`,
};

function problemsOf(env: Record<string, string | undefined>): FleetError {
  try {
    loadWorkerConfig(env);
  } catch (error) {
    if (error instanceof FleetError) return error;
    throw error;
  }
  throw new Error("it took them");
}

test("four variables are enough for a worker, one for a producer", () => {
  expect(loadSharedConfig({ REDIS_URL: GOOD.REDIS_URL })).toEqual({
    REDIS_URL: GOOD.REDIS_URL,
    FLEET_PREFIX: "{fleet}",
  });
  const config = loadWorkerConfig(GOOD);
  expect(config).toMatchObject({
    PVE_API_URL: ["https://pve1:8006"],
    PVE_VERIFY_TLS: true,
    PVE_VMID_RANGE: { first: 20_000, last: 29_999 },
    FLEET_NODE_SLOTS: 4,
    FLEET_ROLES: new Set(["worker", "ops"]),
  });
  expect(config.sandboxNetworks.check("10.1.2.3")).toBe(true);
  expect(config.sandboxNetworks.check("fd00::1", "ipv6")).toBe(true);
  expect(config.sandboxNetworks.check("8.8.8.8")).toBe(false);
  expect(config.sandboxNetworks.check("127.0.0.1")).toBe(false);
});

test("pages that others can reach need a login, which is well formed and said without its hash", async () => {
  const login = await formatLogin("operator", "olga", "correct horse battery");
  expect(problemsOf({ ...GOOD, OPS_HOST: "0.0.0.0" }).message).toContain("OPS_LOGINS is missing");
  expect(loadWorkerConfig({ ...GOOD, OPS_HOST: "0.0.0.0", OPS_LOGINS: login }).OPS_LOGINS).toMatchObject([
    { role: "operator", name: "olga" },
  ]);
  for (const host of ["localhost", "127.0.0.2", "::1"]) loadWorkerConfig({ ...GOOD, OPS_HOST: host });
  const bad = problemsOf({ ...GOOD, OPS_LOGINS: `${login},admin:x:secret` });
  expect(bad.message).toContain("fleet login operator NAME");
  expect(bad.message).not.toContain("secret");
  expect(problemsOf({ ...GOOD, OPS_LOGINS: `${login},${login}` }).message).toContain("names somebody twice");
});

test("every bad variable is reported at once, by name and with a way out, never with its value", () => {
  const bad = {
    REDIS_URL: "http://planted-value",
    FLEET_SECRET_KEY: "planted-value",
    PVE_API_URL: "planted-value",
    PVE_API_TOKEN: "planted-value",
    FLEET_NODE_SLOTS: "planted-value",
    PVE_VMID_RANGE: "9-1",
    FLEET_PREFIX: "planted-value",
    PVE_TLS_FINGERPRINT: "planted-value",
  };
  const error = problemsOf(bad);
  expect(error.code).toBe("not_configured");
  expect([...(error.facts["variables"] as string[])].sort()).toEqual(Object.keys(bad).sort());
  for (const name of Object.keys(bad)) expect(error.text).toContain(name);
  expect(error.message).not.toContain("planted-value");
});

test("what is missing is said to be missing; empty is missing", () => {
  for (const env of [{}, { REDIS_URL: "", PVE_API_TOKEN: "", PVE_API_URL: "", FLEET_SECRET_KEY: "" }]) {
    const { text } = problemsOf(env);
    for (const name of Object.keys(GOOD)) expect(text).toMatch(new RegExp(`${name} is missing`));
  }
});

describe("single variables", () => {
  const refused = (name: string, value: string, more = {}) =>
    expect(problemsOf({ ...GOOD, ...more, [name]: value }).facts["variables"], `${name}=${value}`).toContain(name);
  const read = (env: Record<string, string>) => loadWorkerConfig({ ...GOOD, ...env });

  test("API hosts", () => {
    expect(read({ PVE_API_URL: "https://a:8006, https://b:8006" }).PVE_API_URL).toEqual([
      "https://a:8006",
      "https://b:8006",
    ]);
    for (const url of ["ftp://a", "https://a:8006/api2/json", "https://user@a:8006", ","]) refused("PVE_API_URL", url);
  });

  test("Redis' hosts and database", () => {
    for (const url of ["redis-sentinel://h1,h2:99999", "redis-cluster://h1,h 2", "redis://h/name"])
      refused("REDIS_URL", url);
  });

  test("Redis' TLS files", () => {
    const file = import.meta.filename;
    read({ REDIS_URL: `rediss://h?ca=${file}&cert=${file}&key=${file}` });
    for (const url of [`redis://h?ca=${file}`, `rediss://h?cert=${file}`, "rediss://h?ca=/nonexistent"])
      refused("REDIS_URL", url);
  });

  test("secret keys: hex or base64, several for rotation", () => {
    const base64 = Buffer.alloc(32, 7).toString("base64");
    expect(read({ FLEET_SECRET_KEY: `${KEY},${base64}` }).FLEET_SECRET_KEY).toEqual([
      Buffer.from(KEY, "hex"),
      Buffer.alloc(32, 7),
    ]);
    for (const key of ["ab", `${KEY}00`, Buffer.alloc(31).toString("base64"), ","]) refused("FLEET_SECRET_KEY", key);
  });

  test("ranges of VMIDs and addresses", () => {
    expect(read({ PVE_VMID_RANGE: "500-600" }).PVE_VMID_RANGE).toEqual({ first: 500, last: 600 });
    for (const range of ["99-200", "200-100", "1000", "100-1000000000"]) refused("PVE_VMID_RANGE", range);
    const PVE_IP_RANGE = "10.0.0.100-10.0.0.199/24";
    expect(read({ PVE_IP_RANGE, PVE_GATEWAY: "10.0.0.1" }).PVE_IP_RANGE).toEqual({
      first: "10.0.0.100",
      last: "10.0.0.199",
      bits: 24,
    });
    expect(problemsOf({ ...GOOD, PVE_IP_RANGE }).facts["variables"]).toEqual(["PVE_GATEWAY"]);
    for (const range of [
      "10.0.0.9-10.0.0.1/24",
      "10.0.0.1-10.0.0.9",
      "10.0.0.1-10.0.0.999/24",
      "10.0.0.0-10.9.0.0/8",
      // Two networks; the network's own address, its broadcast address, the gateway.
      "10.0.0.200-10.0.1.20/24",
      "10.0.0.0-10.0.0.20/24",
      "10.0.0.200-10.0.0.255/24",
      "10.0.0.1-10.0.0.20/24",
    ]) {
      refused("PVE_IP_RANGE", range, { PVE_GATEWAY: "10.0.0.1" });
    }
  });

  test("patterns that would give two services or two sandboxes one name are refused", () => {
    for (const pattern of ["{vmid}.{domain}", "{service}.{domain}", "{service}_{vmid}", "{what}-{vmid}-{service}"]) {
      refused("PVE_URL_PATTERN", pattern);
    }
    refused("PVE_HOSTNAME_PATTERN", "always-the-same");
    expect(read({ PVE_URL_PATTERN: "{port}-{id}.{domain}" }).PVE_URL_PATTERN).toBe("{port}-{id}.{domain}");
  });

  test("a default TTL is no longer than the longest", () => {
    const FLEET_TTL_MAX_SECONDS = "3600";
    expect(read({ FLEET_TTL_DEFAULT_SECONDS: "3600", FLEET_TTL_MAX_SECONDS }).FLEET_TTL_DEFAULT_SECONDS).toBe(3_600);
    refused("FLEET_TTL_DEFAULT_SECONDS", "3601", { FLEET_TTL_MAX_SECONDS });
    refused("FLEET_TTL_MAX_SECONDS", "9");
  });

  test("flags, roles, networks, prefix", () => {
    expect(read({ PVE_VERIFY_TLS: "0", FLEET_ROLES: "worker", FLEET_PREFIX: "{a}" })).toMatchObject({
      PVE_VERIFY_TLS: false,
      FLEET_ROLES: new Set(["worker"]),
      FLEET_PREFIX: "{a}",
    });
    refused("PVE_VERIFY_TLS", "yes");
    refused("FLEET_ROLES", "king");
    for (const cidr of ["10.0.0.0", "10.0.0.0/33", "fd00::/129", "lan/8"]) refused("SANDBOX_CIDRS", cidr);
    for (const cidr of ["10.1.2.3/24", "10.0.0.0/8,10.1.0.1/31", "fd00::1/64", "::ffff:10.0.0.1/127"])
      refused("PVE_FIREWALL_ALLOW", cidr);
    for (const prefix of ["fleet", "{}", "{a}{b}", "{a b}"]) refused("FLEET_PREFIX", prefix);
  });
});

import { expect, test } from "vitest";
import { newOperationId, newSandboxId, TeamId } from "../../../shared/ids.ts";
import { ExposedService } from "../../../shared/jobs/fields.ts";
import { signLink, toLinkKeys } from "../../../shared/links.ts";
import { SandboxRecord } from "../../../shared/state/records.ts";
import { createCookieCheck } from "../../../workers/gate/check-cookie.ts";
import type { Route } from "../../../workers/gate/registry.ts";

const keys = toLinkKeys([Buffer.alloc(32, 1)]);
const sandbox = newSandboxId();

function routeTo(epoch: string): Route {
  const url = "https://web-200.sandbox.test";
  const service = ExposedService.parse({ name: "web", port: 80, url, level: "public", auth: "link", epoch });
  const about = { operation: newOperationId(), team: TeamId.parse("default"), template: "t", state: "running" };
  const record = { id: sandbox, ...about, metadata: {}, createdAt: 0 };
  return { sandbox: { ...SandboxRecord.parse(record), services: [service] }, service, leaving: false };
}

test("a cookie that was valid is so until its end, at its own service alone, however often it is shown", () => {
  const check = createCookieCheck(keys);
  const [route, exposedAgain] = [routeTo("000000000001"), routeTo("000000000002")];
  const cookie = signLink(
    keys,
    { sandbox, service: "web", epoch: "000000000001" },
    { purpose: "cookie", expiresAtSec: 100 },
  );
  expect([98, 99, 100].map((nowSec) => check(route, cookie, nowSec))).toEqual(["valid", "valid", "expired"]);
  expect(check(exposedAgain, cookie, 99)).toBe("invalid");
  const changed = `${cookie.slice(0, -2)}${cookie.endsWith("AA") ? "BB" : "AA"}`;
  const longer = `zzzz${cookie.slice(cookie.indexOf("."))}`;
  for (const forged of [changed, longer, `${cookie} `, ""])
    expect([forged, check(route, forged, 99)]).toEqual([forged, "invalid"]);
  // Of many, too, none is taken for another.
  const many = Array.from({ length: 500 }, (_, at) =>
    signLink(keys, { sandbox, service: "web", epoch: "000000000001" }, { purpose: "cookie", expiresAtSec: 1_000 + at }),
  );
  for (const one of many) expect(check(route, one, 99)).toBe("valid");
  expect(check(route, many[0] ?? "", 1_000)).toBe("expired");
});

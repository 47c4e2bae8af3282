/** The API token that PVE does not take, any more or at all: nobody's work is lost over it, and PVE is left in peace. */
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import type { TokenSpec } from "../../pve/views.ts";
import { type Bed, failure, firstFailure, provisionOne, startBed, until, within } from "./harness.ts";

describe("at the start", () => {
  let bed: Bed;
  beforeAll(async () => {
    bed = await startBed({ workers: "none", pve: { nodes: 1, timings: { authDelay: 30 } } });
  });
  afterAll(() => bed.close());

  const CASES: [string, Partial<TokenSpec>, RegExp][] = [
    ["expired", { expired: true }, /token 'it' access expired/],
    ["of a disabled user", { disabled: true }, /user 'ops@pve' is disabled/],
  ];
  test.each(CASES)("a token that is %s", async (_, more, says) => {
    const token = bed.pve.addToken({ user: "ops@pve", id: "it", privileges: {}, ...more });
    const error = await failure(bed.startWorkers({ PVE_API_TOKEN: token }), "unauthorized");
    expect(error.text).toMatch(says);
    expect(error.text).toContain("PVE_API_TOKEN must be ops@pve!it=UUID");
    expect(error.text).toContain("pveum user token list ops@pve");
    expect(error.message).not.toContain(token.split("=")[1]);
    bed.pve.changeToken(token, null);
    const gone = await failure(bed.startWorkers({ PVE_API_TOKEN: token }), "unauthorized");
    expect(gone.text).toContain("no such user ('ops@pve')");
  });
});

describe("while it works", () => {
  let bed: Bed;
  beforeAll(async () => {
    // PVE's own three seconds.
    bed = await startBed({ pve: { nodes: 1 } });
  });
  afterAll(() => bed.close());
  afterEach(() => bed.pve.changeToken(bed.pve.token, { disabled: false }));

  const refused = () => bed.pve.log().filter(({ status }) => status === 401).length;

  test("what is under way waits, what waits stays waiting, and all of it succeeds once the token is good again", async () => {
    const { sandboxId } = await provisionOne(bed.fleet);
    const cloned = bed.pve.faults.request({ kind: "delay", ms: 300, method: "POST", path: "/status/start$" });
    const building = await bed.fleet.provision({ template: "cmux-base" });
    await until(() => cloned.hits > 0, "a start");
    bed.pve.changeToken(bed.pve.token, { disabled: true });
    const destroying = await bed.fleet.destroy({ sandboxId });
    expect(await firstFailure(destroying)).toBe("unauthorized");
    expect((await destroying.status()).lastError?.message).toContain("PVE_API_TOKEN");
    // The next reading of the cluster, which comes by itself every ten seconds.
    await failure(bed.workers?.context.inventory.refresh(within()) ?? Promise.resolve(), "unauthorized");
    const waiting = await bed.fleet.provision({ template: "cmux-base" });
    await until(
      async () => (await waiting.status()).waitingFor?.includes("does not accept the API token"),
      "the reason",
    );
    expect((await waiting.status()).attempts).toBe(0);
    // Each would be three seconds of PVE's time: one is sent, then one asks for all.
    expect(refused()).toBeLessThanOrEqual(5);
    bed.pve.changeToken(bed.pve.token, { disabled: false });
    await Promise.all([building, destroying, waiting].map((one) => one.result({ timeoutMs: 60_000 })));
    expect((await building.status()).lastError).toBeUndefined();
  });
});

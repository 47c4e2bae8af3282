import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { parseUpid, Upid } from "../../../workers/pve/upid.ts";

describe("UPID", () => {
  it("is taken apart", () => {
    expect(parseUpid("UPID:pve1:000003E8:00036332:6B048689:vzclone:100:root@pam!full:")).toEqual({
      node: "pve1",
      pid: 1000,
      pstart: 222002,
      starttime: 1795458697,
      type: "vzclone",
      id: "100",
      user: "root@pam!full",
    });
  });

  it("may have no id, and nine digits of uptime", () => {
    const facts = parseUpid("UPID:n:00000001:123456789:6B048689:aptupdate::root@pam:");
    expect(facts).toMatchObject({ id: "", pstart: 0x123456789 });
  });

  it.each([
    "garbage",
    "",
    "UPID:pve1:000003E8:00036332:6B048689:vzclone:100:root@pam!full",
    "UPID:pve1:3E8:00036332:6B048689:vzclone:100:root@pam:",
    "UPID:pve1:000003E8:00036332:6B048689:vz/clone:100:root@pam:",
    "UPID:pve1:000003E8:00036332:6B048689:vzclone:../100:root@pam:",
    " UPID:pve1:000003E8:00036332:6B048689:vzclone:100:root@pam: ",
  ])("is refused when it is %j", (text) => {
    expect(() => parseUpid(text)).toThrow(expect.objectContaining({ code: "invalid_input" }));
    expect(Upid.safeParse(text).success).toBe(false);
  });

  it("comes back from its facts", () => {
    const hex = (digits: number) =>
      fc.integer({ min: 0, max: 0xffff_ffff }).map((n) => n.toString(16).toUpperCase().padStart(digits, "0"));
    const word = fc.stringMatching(/^[a-z]{1,12}$/);
    const parts = fc.tuple(word, hex(8), hex(8), hex(8), word, fc.stringMatching(/^\d{0,9}$/), word);
    fc.assert(
      fc.property(parts, ([node, pid, pstart, starttime, type, id, user]) => {
        const facts = parseUpid(`UPID:${node}:${pid}:${pstart}:${starttime}:${type}:${id}:${user}@pve!t:`);
        expect(facts).toEqual({
          node,
          pid: Number.parseInt(pid, 16),
          pstart: Number.parseInt(pstart, 16),
          starttime: Number.parseInt(starttime, 16),
          type,
          id,
          user: `${user}@pve!t`,
        });
      }),
    );
  });
});

import { expect, test } from "vitest";
import { Vmid } from "../../../shared/ids.ts";
import { isSuspect } from "../../../workers/sandbox/stale-lock.ts";

const vmid = Vmid.parse(20_001);
const upid = (type: string, id: string) => `UPID:pve1:00000A01:00000B01:66000000:${type}:${id}:root@pam:`;
const running = {};

test.each<[string, string, string, { endtime?: number; status?: string }, boolean]>([
  ["its own snapshot runs", "vzsnapshot", "20001", running, true],
  ["its own snapshot died", "vzsnapshot", "20001", { endtime: 1, status: "unexpected status" }, true],
  ["its own snapshot ended well", "vzsnapshot", "20001", { endtime: 1, status: "OK" }, false],
  ["another's snapshot runs", "vzsnapshot", "20002", running, false],
  ["a clone, which names its source", "vzclone", "9001", running, true],
  ["a backup of all guests, which names none", "vzdump", "", running, true],
  ["such a backup has ended well", "vzdump", "", { endtime: 1, status: "OK" }, false],
  ["a backup of another guest", "vzdump", "20002", running, false],
  ["a shell of an administrator", "vncshell", "", running, false],
])("%s", (_, type, id, end, expected) => {
  expect(isSuspect({ upid: upid(type, id), ...end }, vmid)).toBe(expected);
});

import { Client } from "../client.ts";
import { startPve } from "../index.ts";
import { parseRefusals } from "./recording.ts";
import type { Outcome } from "./replay.ts";

const WRONG = "00000000-0000-0000-0000-000000000000";

/** What each remark of the recording sent; undefined: no header at all. */
const HEADERS: Record<string, string | undefined> = {
  "no auth header": undefined,
  "bad token secret": `PVEAPIToken=root@pam!fleet=${WRONG}`,
  "bad token POST": `PVEAPIToken=root@pam!fleet=${WRONG}`,
  "unknown token id": `PVEAPIToken=root@pam!nope=${WRONG}`,
  "malformed token": "PVEAPIToken=root@pam",
  Bearer: `Bearer ${WRONG}`,
  "unknown user": `PVEAPIToken=who@pve!x=${WRONG}`,
};

/** The refusals by the Authorization header alone, each some time later and without a body. */
export async function replayHeaders(text: string): Promise<Outcome> {
  const delay = 100;
  await using pve = await startPve({ nodes: 1, timings: { apiScale: 0, authDelay: delay } });
  await using client = new Client(pve);
  const outcome: Outcome = { name: "auth: headers", same: 0, mismatches: [], leftOut: [] };
  for (const { title, status, reason } of parseRefusals(text)) {
    const method = title.endsWith("POST") ? "POST" : "GET";
    const right = `PVEAPIToken=${pve.token}`;
    const authorization = title in HEADERS ? HEADERS[title] : right;
    const path = method === "POST" ? "/nodes/pve1/lxc" : "/version";
    const answer = await client.ask(
      method,
      path,
      {},
      { headers: authorization === undefined ? { authorization: "" } : { authorization } },
    );
    const late = status !== 401 || answer.ms > delay - 5;
    const empty = status !== 401 || answer.body === "";
    if (answer.status === status && answer.reason === reason && late && empty) outcome.same += 1;
    else outcome.mismatches.push(`${title}\n      ${status} ${reason}, got ${answer.status} ${answer.reason}`);
  }
  return outcome;
}

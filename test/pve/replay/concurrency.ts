import { Client } from "../client.ts";
import { type Pve, startPve } from "../index.ts";
import { differences } from "./compare.ts";
import type { Outcome } from "./replay.ts";
import { ct100, MACHINE, plain, tmpl1 } from "./scenarios.ts";

/** Requests made at once, and how each ended: "500 CT is locked (disk)", "200 OK -> OK". Which one wins is chance. */
interface Race {
  title: string;
  ends: string[];
}

function parseRaces(text: string): Race[] {
  const races: Race[] = [];
  for (const line of text.split("\n")) {
    if (line.startsWith("== ")) races.push({ title: line.slice(3), ends: [] });
    const match = /^ {3}(\d{3}) (.*?) \d+\.\d+s? ?(UPID:\S+|\S*)? -> ?(.*)$/.exec(line);
    if (match === null) continue;
    const [, status, reason, upid = "", end = ""] = match;
    races.at(-1)?.ends.push(upid.startsWith("UPID") ? `${status} ${reason} -> ${end}` : `${status} ${reason}`);
  }
  return races;
}

type Ask = readonly [method: string, path: string, params?: Record<string, string | number>];

const lxc = (vmid: number) => `/nodes/pve1/lxc/${vmid}`;
const clone = (from: number, newid: number, more = {}): Ask => ["POST", `${lxc(from)}/clone`, { newid, ...more }];
const power = (vmid: number, action: string): Ask => ["POST", `${lxc(vmid)}/status/${action}`];
const alpine = "local:vztmpl/alpine-3.20-busybox_1_amd64.tar.gz";
const create: Ask = ["POST", "/nodes/pve1/lxc", { vmid: 420, ostemplate: alpine, rootfs: "btr:1" }];
const times = (count: number, ask: Ask) => Array.from({ length: count }, () => ask);

/** In the order of the recordings, each on what the ones before have left. */
const RACES: Record<string, { asks: Ask[]; before?: Ask[] }> = {
  "8 x nextid": { asks: times(8, ["GET", "/cluster/nextid"]) },
  "2 linked clones, one template, different newid": { asks: [clone(9001, 501), clone(9001, 502)] },
  "2 full clones, one template, different newid": {
    asks: [clone(9001, 503, { full: 1 }), clone(9001, 504, { full: 1 })],
  },
  "2 clones, one template, SAME newid": { asks: times(2, clone(9001, 405)) },
  "2 clones, two templates, SAME newid": { asks: [clone(9001, 406), clone(100, 406)] },
  "8 clones, one template": { asks: Array.from({ length: 8 }, (_, index) => clone(9001, 410 + index)) },
  "2 creates SAME vmid": { asks: times(2, create) },
  "2 x start same CT": { asks: times(2, power(401, "start")) },
  "2 x stop same CT": { asks: times(2, power(401, "stop")) },
  "2 x delete same CT": { asks: times(2, ["DELETE", lxc(403)]) },
  "start 3 different": { asks: [power(404, "start"), power(407, "start"), power(408, "start")] },
  "delete force 3 running": { asks: [404, 407, 408].map((vmid): Ask => ["DELETE", lxc(vmid), { force: 1 }]) },
};

async function race(client: Client, asks: Ask[]): Promise<string[]> {
  // Open connections, so that all arrive together.
  await Promise.all(asks.map(() => client.ask("GET", "/version")));
  return Promise.all(
    asks.map(async ([method, path, params]) => {
      const { status, reason, body } = await client.ask(method, path, params);
      const data = body === "" ? undefined : (JSON.parse(body) as { data: unknown }).data;
      if (typeof data !== "string" || !data.startsWith("UPID")) return `${status} ${reason}`;
      await client.ended(data);
      const exit = client.pve.tasks().find((task) => task.upid === data)?.exitstatus;
      return `${status} ${reason} -> ${exit}`;
    }),
  );
}

function start(): Promise<Pve> {
  const others = [401, 404, 407, 408].map((vmid) => plain(vmid));
  return startPve({ nodes: [MACHINE], templates: [ct100, tmpl1, plain(200), ...others], timings: { timeScale: 0.2 } });
}

export async function replayRaces(texts: readonly string[]): Promise<Outcome> {
  await using pve = await start();
  await using client = new Client(pve);
  const outcome: Outcome = { name: "races", same: 0, mismatches: [], leftOut: [] };
  const text = texts.join("\n");
  for (const { title, ends } of parseRaces(text)) {
    const known = RACES[title];
    if (known === undefined) {
      if (!title.startsWith("during"))
        outcome.leftOut.push(`== ${title}: who comes first decides, and neither order is an error`);
      continue;
    }
    const expected = ends.sort().join("\n      ");
    // Other VMIDs were free on that machine; the text is what counts.
    const actual = (await race(client, known.asks)).sort().join("\n      ");
    if (expected === actual) outcome.same += ends.length;
    else outcome.mismatches.push(`${title}\n      ${expected}\n    got\n      ${actual}`);
  }
  await duringClone(client, text, outcome);
  return outcome;
}

/** "{'force': 1}" or "{...}" as Python prints it. */
function parsePython(text: string): Record<string, string | number> {
  return JSON.parse(text.replaceAll("'", '"')) as Record<string, string | number>;
}

/** The list also has what else is on the machine. */
function onlyOurs(path: string, data: unknown): unknown {
  if (path !== "/cluster/resources" || !Array.isArray(data)) return data;
  return data.filter((entry: { vmid?: number }) => entry.vmid === 430 || entry.vmid === 9001);
}

/** What may be done to source and target of a clone while it runs. */
async function duringClone(client: Client, text: string, outcome: Outcome): Promise<void> {
  const lines = text.slice(text.indexOf("== during a clone")).split("\n");
  const upid = String(await client.data("POST", `${lxc(9001)}/clone`, { newid: 430, full: 1 }));
  for (const line of lines) {
    const match =
      /^ {3}(GET|POST|PUT|DELETE) (\S+) (\{.*?\}) (\d{3}) (.*?) \d\.\d{3} (.*?) *(?:-> (.*)|(\{'.*\}) *)?$/.exec(line);
    if (match === null) continue;
    const [, method = "", path = "", params = "", status, reason, data = "", end] = match;
    const answer = await client.ask(method, path, parsePython(params));
    const found: string[] = [];
    const got = JSON.parse(answer.body) as { data: unknown };
    if (`${answer.status} ${answer.reason}` !== `${status} ${reason}`) {
      found.push(`${status} ${reason}, got ${answer.status} ${answer.reason}`);
    }
    found.push(...differences(JSON.parse(data), onlyOurs(path, got.data)));
    if (end !== undefined && typeof got.data === "string") {
      await client.ended(got.data);
      const exit = client.pve.tasks().find((task) => task.upid === got.data)?.exitstatus;
      if (exit !== end.trim()) found.push(`-> ${end}, got ${exit}`);
    }
    if (found.length === 0) outcome.same += 1;
    else outcome.mismatches.push(...found.map((wrong) => `during a clone: ${method} ${path}\n      ${wrong}`));
  }
  await client.ended(upid);
}

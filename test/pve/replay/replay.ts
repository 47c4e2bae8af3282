import { Client } from "../client.ts";
import { differences, sameLine } from "./compare.ts";
import type { Ended, Exchanged, Recorded } from "./recording.ts";

export interface Step {
  client: Client;
  /** Recorded UPIDs and ours. */
  upids: Map<string, string>;
}

/** How to bring about what the recording takes for granted. Keys are "METHOD PATH params", with " #2" for the second. */
export interface Scenario {
  name: string;
  recorded: readonly Recorded[];
  start: () => Promise<import("../index.ts").Pve>;
  /** Done before anything else. */
  prepare?: (step: Step) => Promise<void>;
  /** Done before an exchange, or at a note (by the note's text). */
  before?: Record<string, (step: Step) => Promise<void> | void>;
  /** Exchanges that somebody else than the full-rights token made. */
  token?: (key: string, step: Step) => string | undefined;
  /** Exchanges that can't be replayed, and why. */
  leftOut?: Record<string, string>;
}

export interface Outcome {
  name: string;
  same: number;
  mismatches: string[];
  leftOut: string[];
}

/** Log lines that PVE's own code writes; the rest comes from tools of that machine. */
const OUR_LINES = /^(TASK|trying|forced|purging|create (full|linked)|overruled| OK|command 'lxc-stop|WARN)/;

export async function replay(scenario: Scenario): Promise<Outcome> {
  await using pve = await scenario.start();
  await using client = new Client(pve);
  const step: Step = { client, upids: new Map() };
  const outcome: Outcome = { name: scenario.name, same: 0, mismatches: [], leftOut: [] };
  const seen = new Map<string, number>();
  await scenario.prepare?.(step);
  for (const entry of scenario.recorded) {
    if (entry.kind === "note") {
      await scenario.before?.[entry.text]?.(step);
      continue;
    }
    const name = entry.kind === "exchange" ? entry.key : `STATUS ${entry.upid}`;
    const count = (seen.get(name) ?? 0) + 1;
    seen.set(name, count);
    const key = count === 1 ? name : `${name} #${count}`;
    const why = scenario.leftOut?.[key] ?? (entry.kind === "exchange" ? cutOff(entry) : unknownTask(entry, step));
    if (why !== undefined) {
      outcome.leftOut.push(`${key}: ${why}`);
      continue;
    }
    await scenario.before?.[key]?.(step);
    const found =
      entry.kind === "exchange" ? await exchange(entry, step, scenario.token?.(key, step)) : await status(entry, step);
    if (found.length === 0) outcome.same += 1;
    else outcome.mismatches.push(...found.map((text) => `${key}\n      ${text}`));
  }
  return outcome;
}

function cutOff(entry: Exchanged): string | undefined {
  if (!entry.body.startsWith("{")) return undefined;
  try {
    JSON.parse(entry.body);
    return undefined;
  } catch {
    return "its body is cut off in the recording";
  }
}

function unknownTask(entry: Ended, { upids }: Step): string | undefined {
  return upids.has(entry.upid) ? undefined : "the request that began this task was not recorded";
}

function translate(text: string, upids: Map<string, string>): string {
  let translated = decodeURIComponent(text);
  for (const [recorded, ours] of upids) translated = translated.replace(recorded, ours);
  return translated;
}

async function exchange(entry: Exchanged, { client, upids }: Step, token: string | undefined): Promise<string[]> {
  const path = translate(entry.path, upids);
  const answer = await client.ask(entry.method, path, entry.params, token === undefined ? {} : { token });
  const found: string[] = [];
  if (answer.status !== entry.status || answer.reason !== entry.reason) {
    found.push(`${entry.status} ${entry.reason}, got ${answer.status} ${answer.reason}`);
  }
  if (!entry.body.startsWith("{")) {
    if (answer.body !== "") found.push(`an empty body, got ${answer.body}`);
    return found;
  }
  if (!answer.body.startsWith("{")) return [...found, `JSON, got "${answer.body}"`];
  const expected = JSON.parse(entry.body) as { data: unknown };
  const actual = JSON.parse(answer.body) as { data: unknown };
  if (typeof expected.data === "string" && typeof actual.data === "string" && expected.data.startsWith("UPID:")) {
    upids.set(expected.data, actual.data);
  }
  return [...found, ...differences(expected, actual)];
}

async function status(entry: Ended, { client, upids }: Step): Promise<string[]> {
  const upid = upids.get(entry.upid) ?? "";
  await client.ended(upid);
  const path = `/nodes/pve1/tasks/${upid}`;
  const answer = await client.ask("GET", `${path}/status`);
  const found = differences(JSON.parse(entry.body), JSON.parse(answer.body));
  const log = (await client.data("GET", `${path}/log`, { limit: 0 })) as { t: string }[];
  for (const line of entry.lines) {
    if (OUR_LINES.test(line) && !log.some(({ t }) => sameLine(line, t))) found.push(`log line "${line}" missing`);
  }
  return found;
}

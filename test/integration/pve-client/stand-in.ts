import { NodeName, Vmid } from "../../../shared/ids.ts";
import { createPveApi, type PveApi } from "../../../workers/pve/api.ts";
import { createPveHttp, type PveHttp, type PveTarget, type RequestReport } from "../../../workers/pve/http.ts";
import { type LogEntry, type Pve, type PveOptions, startPve } from "../../pve/index.ts";

/** Quick where the duration is not what a test is about. */
const QUICK = {
  authDelay: 20,
  unreachableDelay: 20,
  hungTimeout: 100,
  lockTimeout: 200,
  apiScale: 0.2,
  timeScale: 0.1,
};

export interface StandIn extends AsyncDisposable {
  pve: Pve;
  http: PveHttp;
  api: PveApi;
  /** What the client reported; `sentAt` in ms of performance.now(). */
  reports: (RequestReport & { sentAt: number })[];
  /** A client of its own, closed together with the stand-in. */
  client(target: Partial<PveTarget>): PveHttp;
  /** The requests that PVE has seen, faults left out. */
  seen(): LogEntry[];
}

/** A stand-in and a client that pins its certificate. */
export async function startStandIn(options: PveOptions = {}): Promise<StandIn> {
  const pve = await startPve({ ...options, timings: { ...QUICK, ...options.timings } });
  const clients: PveHttp[] = [];
  const reports: StandIn["reports"] = [];
  const client = (target: Partial<PveTarget>): PveHttp => {
    const tls = { verify: true, fingerprint: pve.fingerprint };
    const made = createPveHttp(
      { hosts: [pve.url], token: pve.token, tls, ...target },
      { onRequest: (report) => reports.push({ ...report, sentAt: performance.now() - report.ms }) },
    );
    clients.push(made);
    return made;
  };
  const http = client({});
  return {
    pve,
    http,
    api: createPveApi(http),
    reports,
    client,
    seen: () => pve.log().filter((entry) => entry.method !== ""),
    [Symbol.asyncDispose]: async () => {
      await Promise.all(clients.map((each) => each.close()));
      await pve.close();
    },
  };
}

export const node = (name: string): NodeName => NodeName.parse(name);
export const vmid = (id: number): Vmid => Vmid.parse(id);

/** What a call takes along in tests: time enough, but not for ever. */
export const call = (ms = 60_000) => ({ signal: AbortSignal.timeout(ms) });

/** The error that a promise ends with. */
export async function failure(promise: Promise<unknown>): Promise<unknown> {
  try {
    await promise;
  } catch (error) {
    return error;
  }
  throw new Error("it did not fail");
}

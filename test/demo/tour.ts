/** The main job from end to end: provision, exec, expose, fetch, snapshot, destroy. */
import { setTimeout as delay } from "node:timers/promises";
import { type Fleet, FleetError, type JobOutput } from "../../producers/index.ts";

/** One line of the demo's table. */
export interface TourRow {
  sandboxId: string;
  node: string;
  vmid: number;
  url: string;
  /** HTTP status of our own request to `url`. */
  fetched: number;
  /** First line that the command in the sandbox printed. */
  said: string;
  /** ms: PVE's steps of the provision, and what we waited for each operation. */
  timings: Record<string, number>;
}

export interface TourOptions {
  template: string;
  count: number;
  /** After everything was shown. */
  destroy: boolean;
  signal: AbortSignal;
  log: (line: string) => void;
}

export interface Tour {
  rows: TourRow[];
  snapshot: JobOutput<"snapshot"> | null;
  destroyed: number;
}

const PORT = 8000;
const LIMIT_MS = 180_000;

/**
 * A web server of what every Debian, cmux or Alpine template has. SANDBOX_ADDRESS is set by the stand-in, whose guests
 * share one network stack; a real container listens on all its addresses.
 */
const WEB_SERVER = `
set -e
address="\${SANDBOX_ADDRESS:-0.0.0.0}"
mkdir -p fleet-demo && cd fleet-demo && echo "hello from $(hostname) at $address" > index.html
serve() { setsid nohup "$@" > /dev/null 2>&1 < /dev/null & }
if command -v python3 > /dev/null; then serve python3 -m http.server ${PORT} --bind "$address"
elif command -v perl > /dev/null; then serve perl -MIO::Socket::INET -e '
  my $s = IO::Socket::INET->new(LocalAddr => $ARGV[0], LocalPort => ${PORT}, Listen => 16, ReuseAddr => 1) or die;
  while (my $c = $s->accept) {
    while (<$c>) { last if /^\\r?$/ }
    print $c "HTTP/1.0 200 OK\\r\\nContent-Type: text/html\\r\\n\\r\\nhello from $ARGV[0]\\n"; close $c }' "$address"
elif command -v busybox > /dev/null; then serve busybox httpd -f -p "$address:${PORT}"
else echo "no python3, perl or busybox to serve with" >&2; exit 1; fi
`;

export async function runTour(fleet: Fleet, options: TourOptions): Promise<Tour> {
  const { count, signal, log } = options;
  const wait = { timeoutMs: LIMIT_MS, signal };
  const rows = await Promise.all(Array.from({ length: count }, () => visit(fleet, options)));
  const [first] = rows;
  if (!first) return { rows, snapshot: null, destroyed: 0 };
  const sandboxId = first.sandboxId;
  const snapshot = await timed(first, "snapshot", async () => (await fleet.snapshot({ sandboxId })).result(wait)).catch(
    (error: unknown) => {
      // Not every storage of a real cluster can; that is an answer, too.
      if (error instanceof FleetError && error.code === "snapshot_unsupported") return null;
      throw error;
    },
  );
  log(snapshot ? `snapshot ${snapshot.snapshotId} of ${sandboxId}` : `${sandboxId}: its storage can't take snapshots`);
  if (!options.destroy) return { rows, snapshot, destroyed: 0 };
  const ends = await Promise.all(
    rows.map((row) =>
      timed(row, "destroy", async () => (await fleet.destroy({ sandboxId: row.sandboxId })).result(wait)),
    ),
  );
  return { rows, snapshot, destroyed: ends.filter(({ existed }) => existed).length };
}

async function visit(fleet: Fleet, { template, signal, log }: TourOptions): Promise<TourRow> {
  const wait = { timeoutMs: LIMIT_MS, signal };
  const row: TourRow = { sandboxId: "", node: "", vmid: 0, url: "", fetched: 0, said: "", timings: {} };
  const made = await timed(row, "provision", async () =>
    (await fleet.provision({ template, metadata: { demo: "tour" } })).result(wait),
  );
  const { sandboxId, node, vmid } = made;
  Object.assign(row, { sandboxId, node, vmid, timings: { ...made.timings, ...row.timings } });
  const ran = await timed(row, "exec", async () =>
    (await fleet.exec({ sandboxId, command: 'echo "$(hostname) on $(uname -sr)"' })).result(wait),
  );
  row.said = ran.stdout.trim();
  log(`${sandboxId} ran a command: exit code ${ran.exitCode}, it said: ${row.said}`);
  const served = await (await fleet.exec({ sandboxId, command: WEB_SERVER })).result(wait);
  if (served.exitCode !== 0)
    throw new FleetError("setup_failed", `the web server of ${sandboxId} did not start: ${served.stderr.trim()}`);
  const service = await timed(row, "expose", async () =>
    (await fleet.expose({ sandboxId, name: "web", port: PORT })).result(wait),
  );
  row.url = service.url;
  row.fetched = await timed(row, "fetch", () => fetchUntilUp(service.url, signal));
  log(`${sandboxId} answers at ${service.url}: ${row.fetched}`);
  return row;
}

/** The server was only just started: asked again until it listens, at most 15 s. */
async function fetchUntilUp(url: string, signal: AbortSignal): Promise<number> {
  const limit = AbortSignal.any([signal, AbortSignal.timeout(15_000)]);
  for (let pauseMs = 10; ; pauseMs = Math.min(pauseMs * 2, 500)) {
    try {
      const reply = await fetch(url, { signal: limit });
      await reply.text();
      return reply.status;
    } catch (error) {
      if (limit.aborted)
        throw new FleetError("url_unresolvable", `${url} did not answer within 15 s`, { cause: error });
      await delay(pauseMs, undefined, { signal: limit });
    }
  }
}

async function timed<T>(row: TourRow, step: string, work: () => Promise<T>): Promise<T> {
  const begun = performance.now();
  const result = await work();
  row.timings[step] = Math.round(performance.now() - begun);
  return result;
}

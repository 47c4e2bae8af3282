/** A minute of load from producers of three teams; says how much it was and what failed, and exits with 1 if anything did. */
import { createFleet, type Fleet } from "../../../producers/index.ts";
import { loadSharedConfig } from "../../../shared/config.ts";
import { isEnded } from "../../../shared/state/records.ts";
import { Ledger, produceLoad } from "../../chaos/load.ts";

const LOAD_MS = 60_000;

const { REDIS_URL: redis, FLEET_PREFIX: prefix, FLEET_SECRET_KEY: secretKey } = loadSharedConfig(process.env);
const client = (team: string): Fleet => createFleet({ redis, prefix, team, ...(secretKey && { secretKey }) });
const teams: [Fleet, ...Fleet[]] = [client("red"), client("green"), client("blue")];
const ledger = new Ledger();
const end = performance.now() + LOAD_MS;
const load = { template: "cmux-base", producers: 8, isOver: () => performance.now() > end };
await produceLoad(teams, ledger, load);
const lost: string[] = [];
await using operator = createFleet({ redis, prefix });
for (const id of ledger.accepted) {
  const status = (await (await operator.operation(id)).status())?.status;
  if (status === undefined || !isEnded(status)) lost.push(id);
}
await Promise.all(teams.map((fleet) => fleet.close()));
process.stdout.write(`${JSON.stringify({ operations: ledger.accepted.length, lost, failures: ledger.failures })}\n`);
if (lost.length + ledger.failures.length > 0 || ledger.accepted.length < 300) process.exitCode = 1;

// Replays the recorded exchanges with a real PVE against the stand-in: status, reason, shape and texts must be the same.
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { replayRaces } from "../test/pve/replay/concurrency.ts";
import { replayHeaders } from "../test/pve/replay/headers.ts";
import { type Outcome, replay } from "../test/pve/replay/replay.ts";
import { scenarios } from "../test/pve/replay/scenarios.ts";

const folder = join(import.meta.dirname, "../../shared/pve/observed");

async function main(): Promise<void> {
  if (!existsSync(folder)) {
    console.log("replay: the recordings are not here, nothing to compare with");
    return;
  }
  const only = process.argv[2] ?? "";
  const read = (file: string) => readFileSync(join(folder, file), "utf8");
  const outcomes: Outcome[] = [];
  if ("auth: headers".includes(only)) outcomes.push(show(await replayHeaders(read("auth.txt"))));
  for (const scenario of scenarios(read)) {
    if (scenario.name.includes(only)) outcomes.push(show(await replay(scenario)));
  }
  if ("races".includes(only)) {
    outcomes.push(show(await replayRaces([read("concurrency.txt"), read("concurrency-2.txt")])));
  }
  const leftOut = outcomes.flatMap((outcome) => outcome.leftOut);
  const wrong = outcomes.reduce((sum, { mismatches }) => sum + mismatches.length, 0);
  const same = outcomes.reduce((sum, outcome) => sum + outcome.same, 0);
  console.log(`\nleft out:\n${leftOut.map((line) => `  ${line}`).join("\n")}`);
  console.log(`\nreplay: ${same} the same, ${wrong} different, ${leftOut.length} left out`);
  if (wrong > 0) process.exitCode = 1;
}

function show(outcome: Outcome): Outcome {
  console.log(`${outcome.mismatches.length === 0 ? "same " : "WRONG"} ${outcome.name}: ${outcome.same} exchanges`);
  for (const mismatch of outcome.mismatches) console.log(`    ${mismatch}`);
  return outcome;
}

await main();

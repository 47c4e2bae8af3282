/** What happened so far, from the first event that is kept, then on from where that ended. Needs REDIS_URL. */
import { createFleetFromEnv } from "sandbox-fleet";

const fleet = createFleetFromEnv(process.env);
let cursor = "0";
for await (const event of fleet.events({ after: cursor, follow: false })) {
  console.log(event.cursor, event.type, event.sandbox);
  cursor = event.cursor; // store it, and nothing is missed after a restart
}
console.log(`go on with: fleet events --follow --after ${cursor}`);
await fleet.close();

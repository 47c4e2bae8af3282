/** Producers as processes of their own: `node producer-process.ts provision COUNT` or `… result OPERATION`. */
import { z } from "zod";
import { createFleetFromEnv } from "../../../producers/index.ts";

await using fleet = createFleetFromEnv(process.env);
const [what, subject] = z.tuple([z.enum(["provision", "result"]), z.string()]).parse(process.argv.slice(2));
const begun = performance.now();
if (what === "result") {
  const handle = await fleet.operation(subject);
  const asked = performance.now();
  const result = await handle.result({ timeoutMs: 60_000 });
  console.log(JSON.stringify({ result, ms: performance.now() - asked }));
} else {
  const one = async () => {
    const handle = await fleet.provision({ template: "cmux-base" });
    return handle.result({ timeoutMs: 120_000 });
  };
  const results = await Promise.all(Array.from({ length: Number(subject) }, one));
  console.log(JSON.stringify({ results, ms: performance.now() - begun }));
}

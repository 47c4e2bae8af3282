/** Which job kinds there are and what they take, for a form or another language. Needs nothing. */
import { JOB_NAMES, jobs, jsonSchemaOf, parseInput } from "sandbox-fleet/jobs";

for (const kind of JOB_NAMES) console.log(`${kind}: ${jobs[kind].summary}`);
console.log(JSON.stringify(jsonSchemaOf("expose").input, null, 2));

try {
  parseInput("expose", { sandboxId: "sbx_0123456789abcdef", name: "Web", port: 80 });
} catch (error) {
  console.log(String(error)); // names the field and what would be right
}

/** An exec daemon that runs nothing and answers at once; prints its address as JSON, runs until it is told to end. */
import { once } from "node:events";
import { createServer } from "node:http";
import { EXECD_PORT } from "../../shared/jobs/fields.ts";

const address = `127.250.${(process.pid >> 8) % 256}.${process.pid % 256}`;
const server = createServer((request, response) => {
  request.resume().once("end", () => response.end('{"type":"exit","code":0}\n'));
});
server.listen(EXECD_PORT, address);
await once(server, "listening");
process.stdout.write(`${JSON.stringify({ address })}\n`);
process.once("SIGTERM", () => process.exit());

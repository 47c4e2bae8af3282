/** A service of a sandbox that answers at once: at the address that it is given; runs until it is told to end. */
import { once } from "node:events";
import { createServer } from "node:http";

const [address = "", port = ""] = process.argv.slice(2);
const server = createServer((request, response) => {
  request.resume().once("end", () => response.end("ok"));
});
server.keepAliveTimeout = 0; // a proxy keeps connections for longer than the 5 s of Node
server.listen(Number(port), address);
await once(server, "listening");
process.stdout.write("{}\n");
process.once("SIGTERM", () => process.exit());

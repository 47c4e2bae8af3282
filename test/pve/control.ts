import { once } from "node:events";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { z } from "zod";
import type { FaultBox } from "./fault-box.ts";
import type { RequestFault, TaskFault } from "./faults.ts";
import { runCommand } from "./guest/command.ts";
import { toSink } from "./guest/execd.ts";
import type { Guests } from "./guest/guests.ts";
import type { NodeTools } from "./node-tools.ts";
import type { TemplateSpec } from "./options.ts";
import type { TokenSpec } from "./views.ts";
import type { World } from "./world.ts";

const vmid = z.int().min(100);
const times = z.int().positive().optional();
const match = { method: z.string().optional(), path: z.string().optional(), times };

const requestFault = z.discriminatedUnion("kind", [
  z.strictObject({
    kind: z.literal("refuse"),
    ...match,
    status: z.int(),
    text: z.string(),
    errors: z.record(z.string(), z.string()).optional(),
  }),
  z.strictObject({ kind: z.literal("delay"), ...match, ms: z.number() }),
  z.strictObject({
    kind: z.literal("lose-reply"),
    ...match,
    as: z.union([z.literal(595), z.literal(596), z.literal("cut")]),
  }),
  z.strictObject({ kind: z.enum(["cut", "hang", "no-worker"]), ...match }),
  z.strictObject({ kind: z.enum(["html", "empty"]), ...match, status: z.int().optional() }),
]);
const taskFault = z.strictObject({
  type: z.string().optional(),
  vmid: vmid.optional(),
  text: z.string().optional(),
  warnings: z.array(z.string()).optional(),
  times,
  leaveLocks: z.boolean().optional(),
  hold: z.boolean().optional(),
});
const oneVmid = z.strictObject({ vmid });

export interface Controlled {
  world: World;
  guests: Guests;
  faults: FaultBox;
  /** What a node has on its PATH. */
  tools: NodeTools;
  /** What GETs show, by path. */
  views: Record<string, () => unknown>;
  addTemplate: (spec: TemplateSpec) => number;
  addToken: (spec: TokenSpec) => string;
}

type Verb = (body: unknown) => unknown;

/** POST verbs by path: a parsed JSON body in, a JSON answer out. */
function verbs({ faults, addTemplate, addToken }: Controlled): Record<string, Verb> {
  return {
    // What zod leaves optional may be undefined to the compiler, which the interfaces rule out.
    "/faults/request": (body) => ({ id: faults.request(requestFault.parse(body) as RequestFault).id }),
    "/faults/task": (body) => ({ id: faults.task(taskFault.parse(body) as TaskFault).id }),
    "/faults/release": (body) => ({ released: faults.release(z.strictObject({ id: z.string() }).parse(body).id) }),
    "/faults/clear": () => faults.clear(),
    "/node": (body) => {
      const states = z.enum(["online", "unreachable", "refused", "hung"]);
      const { name, state } = z.strictObject({ name: z.string(), state: states }).parse(body);
      faults.node(name, state);
    },
    "/quorum": (body) => faults.quorum(z.strictObject({ present: z.boolean() }).parse(body).present),
    "/hook-failure": (body) => faults.hookFailure(z.strictObject({ times }).parse(body).times),
    "/lock": (body) => {
      const asked = z.strictObject({ vmid, lock: z.string().nullable() }).parse(body);
      faults.lock(asked.vmid, asked.lock);
    },
    "/unlock": (body) => faults.lock(oneVmid.parse(body).vmid, null),
    "/freeze": (body) => faults.freeze(oneVmid.parse(body).vmid),
    "/unfreeze": (body) => faults.unfreeze(oneVmid.parse(body).vmid),
    "/kill-task": (body) => faults.killTask(z.strictObject({ upid: z.string() }).parse(body).upid),
    "/vanish": (body) => faults.vanish(oneVmid.parse(body).vmid),
    "/occupy": (body) => {
      const kind = z.enum(["lxc", "qemu"]).optional();
      const asked = z.strictObject({ vmid, node: z.string().optional(), kind }).parse(body);
      faults.occupy(asked.vmid, asked.node, asked.kind);
    },
    "/edit": (body) => {
      const change = z.record(z.string(), z.string().nullable());
      const asked = z.strictObject({ vmid, change }).parse(body);
      faults.edit(asked.vmid, asked.change);
    },
    "/crash": (body) => faults.crash(oneVmid.parse(body).vmid),
    "/move": (body) => {
      const asked = z.strictObject({ vmid, node: z.string() }).parse(body);
      faults.move(asked.vmid, asked.node);
    },
    // Only tests call these two, with what the types of PveOptions allow.
    "/template": (body) => ({ vmid: addTemplate(z.looseObject({}).parse(body) as TemplateSpec) }),
    "/token": (body) => {
      const privileges = z.record(z.string(), z.array(z.string()));
      return { token: addToken(z.strictObject({ user: z.string(), id: z.string(), privileges }).parse(body)) };
    },
  };
}

/** Plain HTTP beside the API: faults, the verbs that a node's own tools have, and the truth. */
export class ControlServer {
  readonly #server: Server;

  constructor(controlled: Controlled) {
    const posts = verbs(controlled);
    this.#server = createServer((request, response) => {
      void serve(controlled, posts, request, response).catch((error: unknown) => {
        const status = error instanceof z.ZodError ? 400 : 409;
        json(response, status, { error: error instanceof Error ? error.message : String(error) });
      });
    });
  }

  async listen(port: number): Promise<number> {
    this.#server.listen(port, "127.0.0.1");
    await once(this.#server, "listening");
    return (this.#server.address() as AddressInfo).port;
  }

  async close(): Promise<void> {
    const closed = once(this.#server, "close");
    this.#server.close();
    this.#server.closeAllConnections();
    await closed;
  }
}

async function serve(
  controlled: Controlled,
  posts: Record<string, Verb>,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  const path = (request.url ?? "/").split("?")[0] ?? "/";
  if (request.method === "GET") {
    const view = Object.hasOwn(controlled.views, path) ? controlled.views[path] : undefined;
    return view === undefined ? json(response, 404, { error: "no such view" }) : json(response, 200, view());
  }
  const chunks: Buffer[] = [];
  for await (const chunk of request as AsyncIterable<Buffer>) chunks.push(chunk);
  const text = Buffer.concat(chunks).toString("utf8");
  if (path === "/node-tool") return void response.end(await controlled.tools.answer(text));
  const body: unknown = text === "" ? {} : JSON.parse(text);
  if (path === "/exec") return exec(controlled, body, response);
  const verb = Object.hasOwn(posts, path) ? posts[path] : undefined;
  if (verb === undefined) return json(response, 404, { error: "no such verb" });
  json(response, 200, verb(body) ?? {});
}

function json(response: ServerResponse, status: number, body: unknown): void {
  if (response.headersSent) {
    response.destroy();
    return;
  }
  response.writeHead(status, { "Content-Type": "application/json" }).end(JSON.stringify(body));
}

/** `pct exec VMID -- bash -c COMMAND`: past execd and its token. Streams the same lines as execd. */
async function exec({ world, guests }: Controlled, body: unknown, response: ServerResponse): Promise<void> {
  const asked = z.strictObject({ vmid, command: z.string(), timeoutMs: z.int().min(0).default(0) }).parse(body);
  const container = world.containers.get(asked.vmid);
  if (container === undefined) throw new Error(`Configuration file 'nodes/?/lxc/${asked.vmid}.conf' does not exist`);
  if (container.guest === undefined) throw new Error(`container '${asked.vmid}' not running!`);
  await guests.enter(container);
  const gone = new AbortController();
  response.once("close", () => gone.abort());
  response.writeHead(200, { "Content-Type": "application/jsonlines" });
  const shell = guests.shell(container, container.guest.address ?? "127.0.0.1");
  await runCommand(asked.command, shell, { timeoutMs: asked.timeoutMs, sink: toSink(response), signal: gone.signal });
  response.end();
}

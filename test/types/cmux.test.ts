/** The cmux client is assignable to the interface that the cmux backend codes against, optional members included. */
import { beforeAll, expect, test } from "vitest";
import { compile, ROOT } from "./compile.ts";

/** As it is written down for the backend, and no more of our own than a client's name. */
const INTERFACE = `
interface ExecResult { exit_code: number; stdout: string; stderr: string }
interface HttpService { name: string; port: number; url: string }
interface Networking { httpServices: HttpService[]; hostname?: string; fqdn?: string }
interface Metadata { app?: string; teamId?: string; userId?: string; [key: string]: string | undefined }
type Status = "running" | "stopped" | "paused" | "unknown";
interface Instance {
  readonly id: string;
  readonly vmid: number;
  status: Status;
  metadata: Metadata;
  networking: Networking;
  exec(command: string, options?: { timeoutMs?: number }): Promise<ExecResult>;
  start(): Promise<void>;
  stop(): Promise<void>;
  shutdown(): Promise<void>;
  pause(): Promise<void>;
  resume(): Promise<void>;
  delete(): Promise<void>;
  exposeHttpService(name: string, port: number): Promise<void>;
  hideHttpService(name: string): Promise<void>;
  setWakeOn(http: boolean, ssh: boolean): Promise<void>;
  snapshot(): Promise<{ id: string }>;
  branch(count: number): Promise<Instance[]>;
}
interface StartOptions {
  snapshotId: string;
  templateVmid?: number;
  instanceId?: string;
  ttlSeconds?: number;
  ttlAction?: "pause" | "stop";
  metadata?: Metadata;
}
interface Client {
  instances: {
    start(options: StartOptions): Promise<Instance>;
    get(options: { instanceId: string; vmid?: number; hostname?: string }): Promise<Instance>;
    list(): Promise<Instance[]>;
  };
  createTemplateFromContainer(instanceId: string): Promise<{ templateVmid: number; snapshotId: string }>;
  deleteTemplate(vmid: number): Promise<void>;
  listOrphanedTemplates(): Promise<{ vmid: number; hostname: string }[]>;
  execInContainer(
    vmid: number,
    command: string,
    options?: { timeoutMs?: number; hostname?: string; instanceId?: string },
  ): Promise<ExecResult>;
  getPublicServiceUrl(port: number, hostId: string): string | null;
  healthCheck(): Promise<unknown>;
}
`;

const toFile = (lines: string, declared = INTERFACE) =>
  `import { createCmuxClient, type CmuxClient, type CmuxInstance } from "${ROOT}producers/cmux/index.ts";
${declared}
declare const client: CmuxClient;
declare const instance: CmuxInstance;
${lines}
export {};`;

const GOOD = `
const asClient: Client = client;
const asInstance: Instance = instance;
const loose: Client = createCmuxClient({ snapshotResolver: async () => ({ templateVmid: 9000 }) });
const outcome = await instance.pause();
const status: "paused" | "stopped" = outcome.status;
const { instances }: { instances: Instance[] } = await instance.branch(2);
const { url }: { url: string } = await instance.exposeHttpService("web", 80);
export { asClient, asInstance, instances, loose, status, url };`;

/** Each must be refused: what would make the first test pass whatever the client is. */
const BAD: Record<string, string> = {
  "a method more": toFile(
    "const one: Instance = instance;",
    INTERFACE.replace("start(): Promise<void>;", "$& fly(): Promise<void>;"),
  ),
  "another result": toFile("const one: Client = client;", INTERFACE.replace("exit_code: number", "exit_code: string")),
  "another status": toFile("const one: Instance = instance;", INTERFACE.replace('"paused" | ', "")),
  "an option that is none": toFile('await client.instances.start({ snapshotId: "s", template: "x" });'),
};

let errors: Map<string, string[]>;
beforeAll(async () => {
  const bad = Object.values(BAD).map((text, at) => [`bad-${at}.ts`, text]);
  errors = await compile({ "good.ts": toFile(GOOD), ...Object.fromEntries(bad) });
}, 300_000);

test("client and instance are what the backend expects", () => {
  expect(errors.get("good.ts")).toBeUndefined();
  expect([...errors.keys()].filter((file) => !/^bad-\d\.ts$/.test(file))).toEqual([]);
});

test.each(Object.keys(BAD).map((name, at) => [name, at] as const))("%s does not compile", (_, at) => {
  const [first = ""] = errors.get(`bad-${at}.ts`) ?? [];
  expect(first).toMatch(/^bad-\d\.ts\(\d+,\d+\): error TS(2322|2353|2741)/);
});

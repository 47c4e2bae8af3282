/** Whether a proxy that runs carries public URLs as it should, seen from outside: its names, its certificate, the gate behind it. */
import { lookup } from "node:dns/promises";
import { once } from "node:events";
import type { IncomingMessage, RequestOptions } from "node:http";
import { request } from "node:https";
import { connect, type TLSSocket } from "node:tls";

export interface CheckOptions {
  /** A host that the pattern gives; of an exposed service, or made up. */
  host: string;
  isExposed: boolean;
  /** Where to connect in place of what the name resolves to. */
  at?: { host: string; port: number } | undefined;
  /** PEM of the authority that signed the certificate, where browsers do not know it. */
  ca?: string | undefined;
  timeoutMs: number;
}

export interface Finding {
  check: "names" | "certificate" | "gate" | "forged headers";
  ok: boolean;
  text: string;
}

export async function checkProxy(options: CheckOptions): Promise<Finding[]> {
  const findings: Finding[] = [];
  const add = (check: Finding["check"], problem: string | null, fine: string) => {
    findings.push({ check, ok: problem === null, text: problem ?? fine });
    return problem === null;
  };
  const { host } = options;
  if (options.at === undefined) {
    const address = await lookup(host).catch(() => null);
    const problem = `${host} does not resolve; add a wildcard DNS record that points to the proxy`;
    if (!add("names", address === null ? problem : null, `${host} is ${address?.address}`)) return findings;
  }
  if (!add("certificate", await findTlsProblem(options), "is valid for it")) return findings;
  const plain = await ask(options, {});
  if (!add("gate", findGateProblem(options, plain), `answers ${plain.status} through the proxy`)) return findings;
  const told = {
    "x-fleet-upstream": "127.0.0.1:9",
    "x-forwarded-uri": "/forged",
    "x-forwarded-host": "forged.invalid",
  };
  const forged = [await ask(options, told), await ask(options, { ...told, [SECRET]: "forged" })];
  const changed = forged.find((one) => one.status !== plain.status && !isRefusal(one));
  const problem = `a client's own X-Fleet headers change the answer (${plain.status}, then ${changed?.status}); use the printed configuration`;
  add("forged headers", changed === undefined ? null : problem, "change nothing");
  return findings;
}

const SECRET = "x-fleet-proxy-secret";

/** A gate that forwards by itself serves nobody who shows a secret that is not its own; proxies in front let it through. */
const isRefusal = ({ status, fromGate }: Reply) => fromGate && status === 403;

const toConnection = ({ host, at, ca, timeoutMs }: CheckOptions) => ({
  host: at?.host ?? host,
  port: at?.port ?? 443,
  servername: host,
  timeout: timeoutMs,
  ...(ca === undefined ? {} : { ca }),
});

async function findTlsProblem(options: CheckOptions): Promise<string | null> {
  const socket: TLSSocket = connect(toConnection(options));
  socket.once("timeout", () => socket.destroy(new Error("no answer")));
  try {
    await once(socket, "secureConnect");
    return null;
  } catch (error) {
    const text = error instanceof Error ? error.message : String(error);
    const way = options.isExposed
      ? "look at the proxy's log: it needs port 443 open to the certificate authority, or DNS-01"
      : "with on-demand certificates that is right for a host that nobody exposed: give an exposed service's with --host";
    return `no valid certificate for ${options.host} (${text}); ${way}`;
  } finally {
    socket.destroy();
  }
}

interface Reply {
  status: number;
  fromGate: boolean;
}

async function ask(options: CheckOptions, headers: Record<string, string>): Promise<Reply> {
  const asked: RequestOptions = { ...toConnection(options), headers: { host: options.host, ...headers }, agent: false };
  const sent = request({ ...asked, path: "/" });
  sent.once("timeout", () => sent.destroy(new Error("no answer")));
  sent.end();
  try {
    const [response]: IncomingMessage[] = await once(sent, "response");
    response?.resume();
    return { status: response?.statusCode ?? 0, fromGate: response?.headers["x-fleet-gate"] !== undefined };
  } catch {
    return { status: 0, fromGate: false };
  } finally {
    sent.destroy();
  }
}

function findGateProblem({ isExposed, host }: CheckOptions, { status, fromGate }: Reply): string | null {
  // Of a service that is exposed the gate says who may pass, or why nothing answers; else the service answers.
  const known = isExposed
    ? fromGate
      ? ![400, 403, 404].includes(status)
      : status > 0 && status < 500
    : fromGate && status === 404;
  if (known) return null;
  if (fromGate && status === 403) return "the gate refuses the proxy: give both the same GATE_PROXY_SECRET";
  if (fromGate && status === 400)
    return "the gate is told of another host: the proxy must leave the Host header as it is";
  if (fromGate && status === 404)
    return `the gate knows no service at ${host}; is it exposed, and PVE_URL_PATTERN the gate's?`;
  // The printed configuration says 503 itself then.
  if ([0, 502, 503].includes(status) && !fromGate)
    return "the proxy does not reach the gate; is a worker with the role gate up where it looks?";
  return `${host} answers ${status}, and not from the gate: another site is configured for it`;
}

/** A real dnsmasq on a port of 127.0.0.1: what a LAN's DNS server is for the names of its DHCP clients. */
import { Resolver } from "node:dns/promises";
import type { LookupFunction } from "node:net";
import { userInfo } from "node:os";
import { freePort, startServerProcess } from "./server-process.ts";

export interface Dnsmasq extends AsyncDisposable {
  /** ADDRESS:PORT. */
  readonly server: string;
  /** Asks it, and nobody else. */
  resolve(name: string): Promise<string>;
  /** The same, for `lookup` of a connection. */
  lookup: LookupFunction;
}

/** `names`: their addresses; each stands for the names below it, too. */
export async function startDnsmasq(names: Record<string, string>): Promise<Dnsmasq> {
  const port = await freePort();
  const server = `127.0.0.1:${port}`;
  const resolver = new Resolver({ timeout: 500, tries: 1 });
  resolver.setServers([server]);
  const resolve = async (name: string) => {
    const [address] = await resolver.resolve4(name);
    if (address === undefined) throw new Error(`${name} has no address`);
    return address;
  };
  const [first = ""] = Object.keys(names);
  const args = [
    ...["--keep-in-foreground", "--conf-file=/dev/null", "--pid-file", `--user=${userInfo().username}`],
    ...["--no-resolv", "--no-hosts", "--bind-interfaces", "--listen-address=127.0.0.1", `--port=${port}`],
    ...Object.entries(names).map(([name, address]) => `--address=/${name}/${address}`),
  ];
  const isUp = () =>
    resolve(first).then(
      () => true,
      () => false,
    );
  const running = await startServerProcess({ command: "dnsmasq", args, isUp });
  const lookup: LookupFunction = (name, _, done) =>
    void resolve(name).then(
      (address) => done(null, [{ address, family: 4 }]),
      (error) => done(error, ""),
    );
  return { server, resolve, lookup, [Symbol.asyncDispose]: () => running[Symbol.asyncDispose]() };
}

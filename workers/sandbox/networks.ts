/** The networks of a copy: what is its source's alone is not in them. Pure. */
import { formatNet, type NetConfig, parseNet } from "../pve/config-format.ts";

export function mapNetworks(
  config: Readonly<Record<string, unknown>>,
  change: (net: NetConfig, key: string) => NetConfig | null,
): Record<string, string> {
  const networks = Object.entries(config).filter(([key]) => /^net\d+$/.test(key));
  return Object.fromEntries(
    networks.flatMap(([key, text]) => {
      const net = change(parseNet(String(text)), key);
      return net === null ? [] : [[key, formatNet(net)]];
    }),
  );
}

/** A fixed address is its source's; whoever is made from it asks for one. */
export function withoutAddress({ ip, ip6, gw: _gw, gw6: _gw6, linkDown: _down, ...net }: NetConfig): NetConfig {
  const isFixed = (address: string) => address.includes("/");
  return {
    ...net,
    ...(ip === undefined ? {} : { ip: isFixed(ip) ? "dhcp" : ip }),
    ...(ip6 === undefined || isFixed(ip6) ? {} : { ip6 }),
  };
}

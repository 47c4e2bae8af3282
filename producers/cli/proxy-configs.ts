/** Configurations of proxies in front of the gate: static, since what is exposed is the gate's to know. Pure. */

import { unreachable } from "../../shared/errors.ts";
import { withDomain } from "../../shared/url-pattern.ts";

export const PROXIES = ["caddy", "cloudflared", "traefik", "tailscale", "zerotier"] as const;
export type ProxyName = (typeof PROXIES)[number];

/**
 * `on-demand`: a certificate for each exposed host; `wildcard`: one for all, by DNS-01; `files`: one for all that another tool
 * renews; `internal`: of Caddy's own CA.
 */
export const TLS_MODES = ["on-demand", "wildcard", "files", "internal"] as const;
export type TlsMode = (typeof TLS_MODES)[number];

export interface ProxySettings {
  /** Where the proxy reaches the gate, as HOST:PORT. */
  gate: string;
  domain: string;
  /** PVE_URL_PATTERN. */
  pattern: string;
  tls: TlsMode;
  /** Of the DNS-01 plugin. */
  dnsProvider: string;
}

/** The pattern's host names with `*` for each label that varies. */
export function toWildcard(pattern: string, domain: string): string {
  const labels = withDomain(pattern, domain).split(".");
  return labels.map((label) => (label.includes("{") ? "*" : label)).join(".");
}

/** Which modes have one certificate for all hosts. */
export const isShared = (tls: TlsMode): boolean => tls === "wildcard" || tls === "files";

/** Whether one certificate can cover all hosts: a wildcard stands for one label. */
export const coversAll = (wildcard: string): boolean => /^\*\.[^*]+$/.test(wildcard);

export function toProxyConfig(name: ProxyName, settings: ProxySettings): string {
  switch (name) {
    case "caddy":
      return toCaddyfile(settings, CADDY_HEAD, "");
    case "cloudflared":
      return toCloudflared(settings);
    case "traefik":
      return toTraefik(settings);
    case "tailscale":
      return toCaddyfile(settings, toOverlayHead("Tailscale", "tailscale ip -4", settings), BIND);
    case "zerotier":
      return toCaddyfile(settings, toOverlayHead("ZeroTier", "zerotier-cli get NETWORK ip", settings), BIND);
    default:
      throw unreachable(name);
  }
}

const BIND = "\tdefault_bind {$OVERLAY_ADDRESS}\n";

const CADDY_HEAD = `# Caddyfile (Caddy 2.6 or newer) in front of sandbox-fleet's gate. It never changes: the gate decides about each request.
# Caddy needs GATE_PROXY_SECRET in its environment, the same as the gate's. DNS: the host below, with its stars, to Caddy.
# On another machine than the gate, its address is to be in the gate's GATE_TRUSTED_PROXIES.
`;

const toOverlayHead = (network: string, command: string, { domain }: ProxySettings): string =>
  `# Caddyfile (Caddy 2.6 or newer) for sandboxes that only members of a ${network} network reach.
# 1. On this machine, with GATE_PROXY_SECRET (the gate's) and OVERLAY_ADDRESS (from: ${command}) in Caddy's environment.
# 2. Names: let a DNS server of the network answer with that address, such as dnsmasq with
#      address=/${domain}/OVERLAY_ADDRESS
#    and have members ask it for ${domain} (${network === "Tailscale" ? "admin console, DNS, split DNS" : "the network's DNS settings"}).
# 3. Certificates: the network gives none for these names. \`--tls wildcard\` and \`--tls files\` need DNS-01 at a public DNS
#    provider; \`--tls internal\` needs Caddy's root certificate on each member.
`;

/** What proxies say of a request's way, as the gate leaves it out where it forwards; some servers read underscores as hyphens. */
const FORGEABLE = [
  "Forwarded",
  "X-Forwarded*",
  "*Real-Ip",
  "*Client-Ip",
  "*ClientIp",
  "Cf-*",
  "X-Original-*",
  "X-Rewrite-Url",
]
  .flatMap((name) => [name, name.replaceAll("-", "_")])
  .filter((name, at, all) => all.indexOf(name) === at);

/** How requests go on to services. */
const SERVICE = `			header_up -X-Fleet-*
			header_down -X-Fleet-*
			flush_interval -1
`;

function toCaddyfile({ gate, domain, pattern, tls, dnsProvider }: ProxySettings, head: string, global: string): string {
  const hosts = toWildcard(pattern, domain);
  const ask = `	# Certificates only for hosts of exposed services.
	on_demand_tls {
		ask http://${gate}/ask
	}
`;
  // Of Caddy 2.6 and later; others only read a header for as long as it takes.
  const timeouts = `	# Who is slow to say what it wants, or says nothing more, is hung up on.
	servers {
		timeouts {
			read_header 10s
			idle 2m
		}
	}
`;
  const certificates: Record<TlsMode, string> = {
    "on-demand": "\t\ton_demand\n",
    internal: "\t\tissuer internal\n\t\ton_demand\n",
    wildcard: `		# Needs a Caddy with this plugin, whose README says what it takes: caddy add-package github.com/caddy-dns/${dnsProvider}
		dns ${dnsProvider} {$DNS_API_TOKEN}
`,
    files: "",
  };
  const site =
    tls === "files"
      ? `	# A certificate for ${hosts} that another tool renews by DNS-01 (certbot, lego, dehydrated): paths of its files, in Caddy's
	# environment. After each renewal: caddy reload --force
	tls {$TLS_CERTIFICATE} {$TLS_KEY}
`
      : `	tls {
${certificates[tls]}	}
`;
  return `${head}{
${global}${timeouts}${isShared(tls) ? "" : ask}}

${hosts} {
${site}
	# In this order: outside of a route Caddy would strip headers after it has asked.
	route {
		# The gate's own headers come from the gate alone; what a client says of its request's way does not count.
		request_header -X-Fleet-*
${FORGEABLE.map((name) => `		request_header -${name}\n`).join("")}
		# Upgraded connections go through the gate, which sees whether they are used and ends them with their service.
		@upgrade header Upgrade *
		reverse_proxy @upgrade ${gate}

		# All else: the gate says where to, wakes what sleeps, or answers itself. It takes its credentials out of the request.
		forward_auth ${gate} {
			uri /
			header_up X-Fleet-Proxy-Secret {$GATE_PROXY_SECRET}
			# As many as ask at once: else Caddy keeps 32 and makes the others anew.
			transport http {
				keepalive_idle_conns_per_host 256
			}
			copy_headers X-Fleet-Upstream X-Fleet-Epoch X-Fleet-More X-Fleet-Cookie X-Fleet-Authorization X-Fleet-Api-Key X-Fleet-Mark
		}

		# Where the request holds credentials of the gate: the service gets what is left without them.
		@more header X-Fleet-More 1
		route @more {
			request_header -Cookie
			@cookie header_regexp X-Fleet-Cookie .
			request_header @cookie Cookie {http.request.header.X-Fleet-Cookie}
			request_header -Authorization
			@authorization header_regexp X-Fleet-Authorization .
			request_header @authorization Authorization {http.request.header.X-Fleet-Authorization}
			request_header -X-Api-Key
			@key header_regexp X-Fleet-Api-Key .
			request_header @key X-Api-Key {http.request.header.X-Fleet-Api-Key}

			# A browser's first visit clears what another sandbox left at this host.
			@first header_regexp X-Fleet-Mark .
			header @first +Set-Cookie {http.request.header.X-Fleet-Mark}
			header @first +Clear-Site-Data "\\"cache\\", \\"storage\\""
		}

		# What a cache in front keeps would be given to those who may not pass, and outlive its service.
		header +Cache-Control private

		# What can't be sent again goes over a connection of its own: one that is kept may be closed by the service just then.
		@once not method GET HEAD OPTIONS
		reverse_proxy @once {http.request.header.X-Fleet-Upstream} {
			transport http {
				keepalive off
			}
${SERVICE}		}
		reverse_proxy {http.request.header.X-Fleet-Upstream} {
			transport http {
				keepalive 4s
				keepalive_idle_conns_per_host 256
			}
${SERVICE}		}
	}

	handle_errors {
		@gateway expression {err.status_code} in [502, 503, 504]
		route @gateway {
			# A service did not answer: the gate looks where its sandbox is by now, and says where to go on, or answers itself.
			@service header X-Fleet-Upstream *
			route @service {
				forward_auth ${gate} {
					uri /unreached
					header_up X-Fleet-Proxy-Secret {$GATE_PROXY_SECRET}
					header_up X-Fleet-Error {err.message}
					copy_headers X-Fleet-Upstream X-Fleet-Epoch
				}
				reverse_proxy {http.request.header.X-Fleet-Upstream} {
					transport http {
						keepalive off
					}
${SERVICE.replaceAll(/^/gm, "\t\t").trimEnd()}
				}
			}

			# The gate did not, as while it is restarted.
			header Retry-After 1
			respond "the gate of this address does not answer just now; try again" 503
		}
	}
}
`;
}

function toCloudflared({ gate, domain, pattern }: ProxySettings): string {
  const hosts = toWildcard(pattern, domain);
  return `# config.yml of cloudflared in front of sandbox-fleet's gate. It never changes: the gate decides about each request.
# 1. cloudflared tunnel create sandboxes; put the tunnel's id below.
# 2. cloudflared tunnel route dns sandboxes '${hosts}'
# 3. Cloudflare's free certificate covers one label below the zone; for more, order one for ${hosts}
#    (Advanced Certificate Manager).
# 4. On another machine than the gate, its address is to be in the gate's GATE_TRUSTED_PROXIES. GATE_WAKE_SECONDS stays below 100,
#    after which Cloudflare answers in the gate's place.
tunnel: TUNNEL-ID
credentials-file: /etc/cloudflared/TUNNEL-ID.json
ingress:
  # The gate forwards by itself, so no secret is needed here; the Host header stays as it is.
  - hostname: "${hosts}"
    service: http://${gate}
  - service: http_status:404
`;
}

function toTraefik({ gate, domain, pattern }: ProxySettings): string {
  const hosts = toWildcard(pattern, domain);
  const regexp = hosts.replaceAll(".", "\\.").replaceAll("*", "[a-z0-9-]+");
  return `# Dynamic configuration of Traefik 3 (a file of its file provider) in front of sandbox-fleet's gate. It never changes:
# the gate decides about each request. The static configuration needs an entry point \`websecure\` and a resolver by DNS-01,
# since one certificate is for all hosts:
#
#   entryPoints:
#     websecure:
#       address: ":443"
#       # Uploads take their time.
#       transport: { respondingTimeouts: { readTimeout: 0 } }
#   certificatesResolvers:
#     sandboxes:
#       acme:
#         email: YOU@EXAMPLE.COM
#         storage: /etc/traefik/acme.json
#         dnsChallenge: { provider: YOUR-PROVIDER }
#
# On another machine than the gate, its address is to be in the gate's GATE_TRUSTED_PROXIES.
http:
  routers:
    sandboxes:
      rule: "HostRegexp(\`^${regexp.replaceAll("\\", "\\\\")}$\`)"
      entryPoints: [websecure]
      service: gate
      middlewares: [no-forged-headers]
      tls:
        certResolver: sandboxes
        domains:
          - main: "${hosts}"
  middlewares:
    # The gate's own headers come from nobody else.
    no-forged-headers:
      headers:
        customRequestHeaders:
          X-Fleet-Proxy-Secret: ""
          X-Fleet-Upstream: ""
  services:
    gate:
      loadBalancer:
        passHostHeader: true
        responseForwarding: { flushInterval: 1ms }
        servers:
          - url: "http://${gate}"
`;
}

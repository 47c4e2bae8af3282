/**
 * What is printed for proxies that are not among Debian's packages: every key and the form of every value, as their makers have it
 * (cloudflared's config/configuration.go and ingress/ingress.go; Traefik's reference of its file provider and of rules).
 */
import { expect, test } from "vitest";
import { parse } from "yaml";
import { z } from "zod";
import { type ProxySettings, toProxyConfig, toWildcard } from "../../../producers/cli/proxy-configs.ts";
import { DEFAULT_URL_PATTERN } from "../../../shared/config-gate.ts";

const SETTINGS: ProxySettings = {
  gate: "10.0.0.9:3080",
  domain: "sandbox.example.com",
  pattern: DEFAULT_URL_PATTERN,
  tls: "on-demand",
  dnsProvider: "",
};
const PATTERNS = [DEFAULT_URL_PATTERN, "port-{port}-{id}.{domain}", "{id}-x-{port}"];
const url = z.literal("http://10.0.0.9:3080");

test.each(PATTERNS)("cloudflared, %s", (pattern) => {
  const text = toProxyConfig("cloudflared", { ...SETTINGS, pattern });
  const config = z
    .strictObject({
      tunnel: z.string(),
      "credentials-file": z.string().regex(/^\/.*\.json$/),
      // A star stands only at the beginning, no port behind; the last rule, and no other, has no hostname.
      ingress: z.tuple([
        z.strictObject({ hostname: z.string().regex(/^\*(\.[a-z0-9-]+)+$/), service: url }),
        z.strictObject({ service: z.literal("http_status:404") }),
      ]),
    })
    .parse(parse(text));
  expect(config.ingress[0].hostname).toBe("*.sandbox.example.com");
});

const Traefik = z.strictObject({
  http: z.strictObject({
    routers: z.strictObject({
      sandboxes: z.strictObject({
        rule: z.string(),
        entryPoints: z.tuple([z.literal("websecure")]),
        service: z.literal("gate"),
        middlewares: z.tuple([z.literal("no-forged-headers")]),
        tls: z.strictObject({
          certResolver: z.literal("sandboxes"),
          domains: z.tuple([z.strictObject({ main: z.literal("*.sandbox.example.com") })]),
        }),
      }),
    }),
    middlewares: z.strictObject({
      // Empty: it is removed.
      "no-forged-headers": z.strictObject({
        headers: z.strictObject({ customRequestHeaders: z.record(z.string().startsWith("X-Fleet-"), z.literal("")) }),
      }),
    }),
    services: z.strictObject({
      gate: z.strictObject({
        loadBalancer: z.strictObject({
          passHostHeader: z.literal(true),
          responseForwarding: z.strictObject({ flushInterval: z.string().regex(/^\d+ms$/) }),
          servers: z.tuple([z.strictObject({ url })]),
        }),
      }),
    }),
  }),
});
/** What stands in its comments for Traefik's own file. */
const TraefikStatic = z.strictObject({
  entryPoints: z.strictObject({
    websecure: z.strictObject({
      address: z.literal(":443"),
      transport: z.strictObject({ respondingTimeouts: z.strictObject({ readTimeout: z.literal(0) }) }),
    }),
  }),
  certificatesResolvers: z.strictObject({
    sandboxes: z.strictObject({
      acme: z.strictObject({
        email: z.string(),
        storage: z.string(),
        dnsChallenge: z.strictObject({ provider: z.string() }),
      }),
    }),
  }),
});

test.each(PATTERNS)("traefik, %s", (pattern) => {
  const text = toProxyConfig("traefik", { ...SETTINGS, pattern });
  const { rule } = Traefik.parse(parse(text)).http.routers.sandboxes;
  const [, regexp = ""] = /^HostRegexp\(`([^`]+)`\)$/.exec(rule) ?? [];
  // Nothing in it that Go's regular expressions and ours read differently.
  expect(regexp).toMatch(/^\^([a-z0-9-]|\\\.|\[a-z0-9-\]\+)+\$$/);
  const isRouted = (host: string) => new RegExp(regexp).test(host);
  expect(["vscode-200", "port-80-x", "a"].map((label) => isRouted(`${label}.sandbox.example.com`))).toEqual([
    true,
    true,
    true,
  ]);
  const others = [
    "sandbox.example.com",
    "a.b.sandbox.example.com",
    "a.sandboxXexample.com",
    "a.sandbox.example.com.evil",
  ];
  expect(others.filter(isRouted)).toEqual([]);
  const commented = /^# {3}(?:entryPoints|certificatesResolvers):\n(?:# {3}.*\n)+/m.exec(text)?.[0] ?? "";
  TraefikStatic.parse(parse(commented.replace(/^# {3}/gm, "")));
});

test("hosts of more than one varying label have a star for each", () => {
  expect(toWildcard("{service}.{id}", "x.test")).toBe("*.*.x.test");
  expect(toWildcard("{service}-{vmid}.{domain}", "x.test")).toBe("*.x.test");
});

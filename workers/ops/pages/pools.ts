/** Sections of the fleet page that are there only where there is something in them: warm pools, and quarantine. */
import type { PoolRow } from "../pools.ts";
import { type Html, html } from "./html.ts";
import { span, table } from "./layout.ts";
import type { QuarantineView } from "./read.ts";

export function poolSection(pools: readonly PoolRow[]): Html | null {
  if (pools.length === 0) return null;
  return html`<h2>Warm pools</h2>
${table(["Template", "Ready", "Target", "Bounds", "Making", "Silent", "Served", "Claim", "Made in", "Idle", "Failures"], pools.map(poolRow), "None.")}`;
}

function poolRow(pool: PoolRow) {
  const { template, settings, ready, target, making, silent, asked, hits, claimMs, made, madeMs, idleMs, failures } =
    pool;
  const bounds =
    settings === undefined ? html`<span class="warn">removed</span>` : `${settings.min} to ${settings.max}`;
  return [
    html`<a href="/sandboxes?state=warm&amp;q=${template}">${template}</a>`,
    html`<span class="${ready >= target ? "good" : "warn"}">${ready}</span>`,
    target,
    bounds,
    making,
    silent > 0 ? html`<span class="warn">${silent}</span>` : silent,
    asked === 0 ? "" : `${hits} of ${asked} (${Math.round((100 * hits) / asked)} %)`,
    hits === 0 ? "" : `${Math.round(claimMs / hits)} ms`,
    made === 0 ? "" : `${(madeMs / made / 1_000).toFixed(1)} s`,
    idleMs === 0 ? "" : span(idleMs),
    failures > 0 ? html`<span class="bad">${failures}</span>` : failures,
  ];
}

export function quarantineSection({ rows, total }: QuarantineView): Html | null {
  if (total === 0) return null;
  return html`<h2 id="quarantine">Quarantine</h2>
<p class="dim">${total} ${total === 1 ? "container" : "containers"} in the fleet's range that no sandbox owns.</p>
${table(["VMID", "Node", "Name", "Found", "Removed", "Sandbox", "Team", "Why"], rows.map(quarantineRow), "None.")}
${total > rows.length && html`<p class="dim">And ${total - rows.length} more: <code>fleet reconcile --dry-run</code> lists all.</p>`}`;
}

function quarantineRow({ vmid, node, name, since, sandbox, team, reason, ...entry }: QuarantineView["rows"][number]) {
  return [
    vmid,
    node,
    name,
    `${span(Date.now() - since)} ago`,
    fate(entry),
    sandbox && html`<a href="/sandboxes/${sandbox}"><code>${sandbox}</code></a>`,
    team,
    html`<span class="text">${reason ?? "no sandbox has leased its VMID"}</span>`,
  ];
}

/** How long it stays. */
function fate({ verdict, lookAt, removeAt }: Pick<QuarantineView["rows"][number], "verdict" | "lookAt" | "removeAt">) {
  if (verdict === undefined) return `looked at in ${span(lookAt - Date.now())}`;
  if (verdict === "wait") return "goes to its provision";
  if (verdict === "stranger") return html`<span class="dim">stays: not this fleet's</span>`;
  if (removeAt === Number.POSITIVE_INFINITY) return html`<span class="warn">when an operator says so</span>`;
  return `in ${span(removeAt - Date.now())}`;
}

/** The fleet at a glance: what is wrong, its nodes and the batches that run. */
import type { BatchRecord, SandboxState } from "../../../shared/state/records.ts";
import { type Html, html } from "./html.ts";
import { gib, span, table } from "./layout.ts";
import { poolSection, quarantineSection } from "./pools.ts";
import type { FleetView, NodeRow } from "./read.ts";

export function overview(view: FleetView, { acts }: { acts: boolean }): Html {
  return html`${troubles(view)}
<h2>Nodes</h2>
${table(
  ["Node", "State", "Slots", "Running", "Waiting", "Commands", "Memory GiB", "Disk GiB", ...(acts ? ["Actions"] : [])],
  view.nodes.map((node) => nodeRow(node, acts)),
  "No worker has read the cluster yet.",
)}
<h2>Sandboxes</h2>
${states(view.states)}
${poolSection(view.pools)}
<h2>Operations</h2>
<p>${view.open} open${view.placing > 0 && `, ${view.placing} of them wait to be placed`}.</p>
<h2>Batches that run</h2>
${batchTable(view.batches.filter(({ endedAt }) => endedAt === undefined))}
${quarantineSection(view.quarantine)}`;
}

function troubles({ troubles: found }: FleetView): Html {
  if (found.length === 0) return html`<p class="good">Nothing needs you.</p>`;
  return html`<ul class="plain" aria-label="What needs attention">${found.map(
    ({ grade, text, href }) =>
      html`<li class="${grade}">${grade === "bad" ? "Problem" : "Warning"}: ${href === undefined ? text : html`<a href="${href}">${text}</a>`}</li>`,
  )}</ul>`;
}

function nodeRow(node: NodeRow, acts: boolean) {
  const { name, obstacle, online, slots, queue, exec, memory, storages } = node;
  const state = !online
    ? html`<span class="bad">offline</span>`
    : obstacle !== undefined
      ? html`<span class="warn">${obstacle}</span>`
      : html`<span class="good">ready</span>`;
  const action = node.cordoned ? "uncordon" : "cordon";
  return [
    name,
    state,
    `${slots.taken} of ${slots.limit}`,
    queue.active,
    queue.waiting,
    `${exec.active} (+${exec.waiting})`,
    `${gib(memory.used)} of ${gib(memory.total)}`,
    storages.map((one) => html`<div>${one.name}: ${gib(one.used)} of ${gib(one.total)}</div>`),
    ...(acts
      ? [html`<a href="/nodes/${name}/${action}">${action}</a> · <a href="/nodes/${name}/drain">drain</a>`]
      : []),
  ];
}

function states(counts: ReadonlyMap<SandboxState, number>): Html {
  const present = [...counts].filter(([, count]) => count > 0);
  if (present.length === 0) return html`<p class="dim">None.</p>`;
  return html`<p>${present.map(
    ([state, count]) => html`<a href="/sandboxes?state=${state}">${count} ${state}</a>&ensp;`,
  )}</p>`;
}

export function batchTable(batches: readonly BatchRecord[]): Html {
  return table(
    ["Batch", "Team", "Progress", "Queued", "Running", "Succeeded", "Failed", "Canceled", "Age", "State"],
    batches.map((batch) => {
      const { id, team, size, queued, running, succeeded, failed, canceled, createdAt, endedAt, stop } = batch;
      const done = succeeded + failed + canceled;
      const all = Math.max(size ?? 0, done + queued + running);
      return [
        html`<code>${id}</code>`,
        team,
        html`<progress max="${Math.max(1, all)}" value="${done}">${done} of ${all}</progress> ${done}/${all}`,
        queued,
        running,
        succeeded,
        failed > 0 ? html`<span class="bad">${failed}</span>` : failed,
        canceled,
        span((endedAt ?? Date.now()) - createdAt),
        endedAt === undefined ? (stop ?? "runs") : "ended",
      ];
    }),
    "None.",
  );
}

/** The list of sandboxes, one sandbox, one operation. */
import { whyNotAgain } from "../../../producers/retry.ts";
import { POOL_TEAM } from "../../../shared/ids.ts";
import type { OperationRecord, SandboxRecord } from "../../../shared/state/records.ts";
import { isEnded, isGone, SANDBOX_STATES } from "../../../shared/state/records.ts";
import { jobUrl } from "../board.ts";
import { type Html, html } from "./html.ts";
import { span, table } from "./layout.ts";
import { PAGE_ROWS, type SandboxPage, type SandboxQuery } from "./read.ts";

const linkTo = (id: string) => html`<a href="/sandboxes/${id}"><code>${id}</code></a>`;
const toOperation = (id: string) => html`<a href="/operations/${id}"><code>${id}</code></a>`;
const toJob = ({ queue, job }: OperationRecord, acts: boolean) =>
  html`<a href="${jobUrl(acts ? "operator" : "viewer", queue, job)}"><code>${job}</code> in ${queue}</a>`;
const age = (at: number | undefined) => (at === undefined ? "" : `${span(Date.now() - at)} ago`);
const listed = SANDBOX_STATES.filter((state) => !isGone(state));

export function sandboxList({ rows, found, total }: SandboxPage, { q, state, team, page }: SandboxQuery): Html {
  const pages = Math.max(1, Math.ceil(found / PAGE_ROWS));
  const to = (other: number) => `/sandboxes?${new URLSearchParams({ q, state, team, page: String(other) })}`;
  return html`<form class="row" method="get" action="/sandboxes">
<label>Search <input name="q" value="${q}" size="30" placeholder="id, VMID, host name, template"></label>
<label>State <select name="state"><option value="">all</option>${listed.map(
    (one) => html`<option${one === state && " selected"}>${one}</option>`,
  )}</select></label>
<label>Team <input name="team" value="${team}"></label>
<button>Show</button></form>
<p class="dim">${found} of ${total}${pages > 1 && `, page ${page} of ${pages}`}</p>
${table(
  ["Sandbox", "State", "Team", "Template", "Node", "VMID", "Host name", "Age", "Ends", "URLs"],
  rows.map((one) => [
    linkTo(one.id),
    stateOf(one),
    teamOf(one),
    one.template,
    one.node,
    one.vmid,
    one.hostname,
    span(Date.now() - one.createdAt),
    one.expiresAt === undefined ? "" : `in ${span(one.expiresAt - Date.now())}`,
    one.services.map(({ name, url }) => html`<div><a href="${url}" rel="noreferrer">${name}</a></div>`),
  ]),
  "None.",
)}
<p>${page > 1 && html`<a href="${to(page - 1)}">Earlier page</a> `}${page < pages && html`<a href="${to(page + 1)}">Next page</a>`}</p>`;
}

/** What stands in a pool is nobody's yet: its team is a word of ours. */
const teamOf = ({ team, pool }: SandboxRecord): Html =>
  team === POOL_TEAM ? html`<span class="dim">pool${pool !== undefined && ` of ${pool}`}</span>` : html`${team}`;

function stateOf({ state }: SandboxRecord): Html {
  const grade = state === "running" || state === "warm" ? "good" : state === "quarantined" ? "bad" : "dim";
  return html`<span class="${grade}">${state}</span>`;
}

/** `maker`: the operation that made it, while its record is kept. */
export function sandboxPage(
  sandbox: SandboxRecord,
  { acts, maker }: { acts: boolean; maker: OperationRecord | null },
): Html {
  const { id, template, node, vmid, hostname, address, createdAt, runningAt, expiresAt, ttlAction } = sandbox;
  return html`<dl>
<dt>State</dt><dd>${stateOf(sandbox)}</dd>
<dt>Team</dt><dd>${teamOf(sandbox)}</dd>
<dt>Template</dt><dd>${template}</dd>
<dt>Container</dt><dd>${vmid === undefined ? "none" : `${vmid} on ${node}`}</dd>
<dt>Host name</dt><dd>${hostname}</dd>
<dt>Address</dt><dd>${address}</dd>
<dt>Made by</dt><dd>${toOperation(sandbox.operation)}</dd>
<dt>Job of that</dt><dd>${maker === null ? "no longer kept" : toJob(maker, acts)}</dd>
<dt>Created</dt><dd>${age(createdAt)}</dd>
<dt>Running since</dt><dd>${age(runningAt)}</dd>
<dt>Ends</dt><dd>${expiresAt === undefined ? "when it is told to" : `${ttlAction} in ${span(expiresAt - Date.now())}`}</dd>
<dt>Metadata</dt><dd>${Object.entries(sandbox.metadata).map(([key, value]) => html`<div><code>${key}=${value}</code></div>`)}</dd>
</dl>
<h2>Services</h2>
${table(
  ["Name", "Port", "URL", "Level", "Auth"],
  sandbox.services.map(({ name, port, url, level, auth }) => [
    name,
    port,
    html`<a href="${url}" rel="noreferrer">${url}</a>`,
    level,
    auth,
  ]),
  "None.",
)}
${acts && !isGone(sandbox.state) && html`<p><a class="button danger" href="/sandboxes/${id}/destroy">Destroy this sandbox</a></p>`}`;
}

export function operationPage(operation: OperationRecord, { acts }: { acts: boolean }): Html {
  const { id, kind, team, sandbox, status, step, waitingFor, attempts, lastError, error } = operation;
  return html`<dl>
<dt>Kind</dt><dd>${kind}</dd>
<dt>Status</dt><dd>${status}${operation.abort !== undefined && !isEnded(status) && ", is told to end"}</dd>
<dt>Sandbox</dt><dd>${linkTo(sandbox)}</dd>
<dt>Team</dt><dd>${team}</dd>
<dt>Waits for</dt><dd>${waitingFor}</dd>
<dt>Step</dt><dd>${step?.name}</dd>
<dt>Failed runs</dt><dd>${attempts}</dd>
<dt>Last error</dt><dd>${lastError && `${lastError.code}: ${lastError.message}`}</dd>
<dt>Error</dt><dd>${error && html`<span class="bad">${error.code}: ${error.message}</span>`}</dd>
<dt>Job</dt><dd>${toJob(operation, acts)}</dd>
<dt>Accepted</dt><dd>${age(operation.acceptedAt)}</dd>
<dt>Ended</dt><dd>${age(operation.endedAt)}</dd>
<dt>Times</dt><dd>${Object.entries(operation.timings).map(([name, ms]) => html`<div>${name} ${ms} ms</div>`)}</dd>
</dl>
${acts && !isEnded(status) && html`<p><a class="button" href="/operations/${id}/cancel">Cancel this operation</a></p>`}
${acts && status === "failed" && again(operation)}`;
}

function again(operation: OperationRecord): Html {
  const why = whyNotAgain(operation);
  if (why !== null) return html`<p class="dim">It can't be asked for again: ${why}.</p>`;
  return html`<p><a class="button" href="/operations/${operation.id}/retry">Ask for it again</a></p>`;
}

/** Asks before it acts. */
export function confirmation({ action, text, back }: { action: string; text: string; back: string }): Html {
  return html`<p>${text}</p>
<form class="row" method="post" action="${action}"><button class="danger">Yes, do it</button> <a class="button" href="${back}">No, back</a></form>`;
}

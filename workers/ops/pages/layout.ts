/** What all pages share: frame, look, and the script that keeps them up to date. */
import type { Visitor } from "../access.ts";
import { BOARD } from "../board.ts";
import { type Html, html } from "./html.ts";

export interface Page {
  title: string;
  visitor: Visitor;
  main: Html;
  /** Read again every few seconds. */
  live?: boolean;
}

export function layout({ title, visitor, main, live = false }: Page): string {
  const { name, role } = visitor;
  return `<!doctype html>${
    html`<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>${title} · sandbox-fleet</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/style.css">
${live && html`<script src="/live.js" defer></script>`}
</head>
<body>
<a class="skip" href="#main">To the content</a>
<header>
<strong>sandbox-fleet</strong>
<nav aria-label="Pages"><a href="/">Fleet</a> <a href="/sandboxes">Sandboxes</a> <a href="/batches">Batches</a> <a href="${BOARD[role]}">Queues</a></nav>
<span class="who">${name === undefined ? "no login: looking only" : `${name}, ${role}`}</span>
</header>
<main id="main">
<h1>${title}</h1>
${main}
</main>
</body>
</html>`.text
  }`;
}

export const STYLE = `
:root { --ink: #1c2430; --dim: #5b6675; --paper: #ffffff; --line: #d9dfe7; --soft: #f3f5f8; --link: #0b5bd3;
  --good: #1a7f37; --warn: #8a5a00; --bad: #b3261e; --bar: #6a9df0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --dim: #9aa6b5; --paper: #12161c; --line: #2b333e; --soft: #1a2028;
  --link: #7fb2ff; --good: #57c878; --warn: #e0b252; --bad: #ff8a80; --bar: #3c6fc4; } }
* { box-sizing: border-box; }
body { margin: 0; font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper); }
header { display: flex; flex-wrap: wrap; gap: .4rem 1.2rem; align-items: baseline; padding: .7rem 1rem; border-bottom: 1px solid var(--line); background: var(--soft); }
nav { display: flex; gap: 1rem; } .who { margin-left: auto; color: var(--dim); }
main { padding: 0 1rem 3rem; max-width: 90rem; margin: 0 auto; }
h1 { font-size: 1.35rem; margin: 1rem 0 .6rem; } h2 { font-size: 1.05rem; margin: 1.6rem 0 .5rem; }
a { color: var(--link); } a:focus-visible, button:focus-visible, input:focus-visible, select:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
.skip { position: absolute; left: -99rem; } .skip:focus { left: 1rem; top: .5rem; background: var(--paper); padding: .3rem .6rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .35rem .7rem .35rem 0; border-bottom: 1px solid var(--line); white-space: nowrap; vertical-align: top; }
th { color: var(--dim); font-weight: 600; } td.num, th.num { text-align: right; } .text { display: inline-block; white-space: normal; min-width: 12rem; }
code { font: 13px/1.4 ui-monospace, monospace; }
.good { color: var(--good); } .warn { color: var(--warn); } .bad { color: var(--bad); } .dim { color: var(--dim); }
ul.plain { padding: 0; list-style: none; } ul.plain li { margin: .25rem 0; }
form.row { display: flex; flex-wrap: wrap; gap: .5rem; margin: .6rem 0; align-items: end; } label { display: grid; gap: .15rem; color: var(--dim); }
input, select, button { font: inherit; color: inherit; background: var(--paper); border: 1px solid var(--line); border-radius: 6px; padding: .3rem .6rem; }
a.button { display: inline-block; border: 1px solid var(--line); border-radius: 6px; padding: .3rem .6rem; background: var(--soft); text-decoration: none; }
a.button.danger { color: var(--bad); border-color: var(--bad); }
button { cursor: pointer; background: var(--soft); } button.danger { color: var(--bad); border-color: var(--bad); }
progress { width: 8rem; height: .8rem; accent-color: var(--bar); vertical-align: middle; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1rem; } dt { color: var(--dim); } dd { margin: 0; overflow-wrap: anywhere; } dd:empty, dt:has(+ dd:empty) { display: none; }
@media (max-width: 40rem) { thead { position: absolute; left: -99rem; } tr { display: block; padding: .5rem 0; border-bottom: 1px solid var(--line); }
  td { display: block; position: relative; padding: .1rem 0 .1rem 7.5rem; border: 0; white-space: normal; overflow-wrap: anywhere; }
  td::before { content: attr(data-head); position: absolute; left: 0; color: var(--dim); } td:empty { display: none; } input { width: 100%; } label { flex: 1 1 9rem; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .4rem; } .who { margin-left: 0; } }
`;

/** Leaves the page alone while somebody fills in a form, and while nobody looks. */
export const LIVE = `
const everyMs = 3000;
async function renew() {
  const busy = document.hidden || document.activeElement?.closest("form");
  try {
    if (busy) return;
    const reply = await fetch(location.href, { headers: { accept: "text/html" } });
    if (!reply.ok) return;
    const fresh = new DOMParser().parseFromString(await reply.text(), "text/html").getElementById("main");
    if (fresh) document.getElementById("main").replaceChildren(...fresh.childNodes);
  } catch {} finally { setTimeout(renew, everyMs); }
}
setTimeout(renew, everyMs);
`;

/** "3 s", "5 min", "2 h", "4 d". */
export function span(ms: number): string {
  const seconds = Math.max(0, Math.round(ms / 1_000));
  if (seconds < 90) return `${seconds} s`;
  if (seconds < 5_400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 129_600) return `${Math.round(seconds / 3_600)} h`;
  return `${Math.round(seconds / 86_400)} d`;
}

export const gib = (bytes: number): string => `${(bytes / 1_073_741_824).toFixed(1)}`;

export function table(heads: readonly string[], rows: readonly (readonly unknown[])[], empty: string): Html {
  if (rows.length === 0) return html`<p class="dim">${empty}</p>`;
  const cell = (value: unknown, at: number) => html`<td role="cell" data-head="${heads[at]}">${value as Html}</td>`; // what html takes
  // The roles: on a phone a row is a block, which browsers then take for no row.
  return html`<div class="wide"><table role="table"><thead role="rowgroup"><tr role="row">${heads.map(
    (head) => html`<th role="columnheader" scope="col">${head}</th>`,
  )}</tr></thead>
<tbody role="rowgroup">${rows.map((row) => html`<tr role="row">${row.map(cell)}</tr>`)}</tbody></table></div>`;
}

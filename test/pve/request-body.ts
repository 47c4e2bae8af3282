import type { IncomingMessage } from "node:http";
import { Refusal } from "./refusal.ts";
import { JSON_NULL } from "./schema/rules.ts";

const MAX_POST = 512 * 1024;

/** A refusal that is plain text in the body: what the HTTP server itself says, before any API code has run. */
export class PlainRefusal extends Refusal {}

/**
 * PVE::APIServer::AnyEvent::decode_urlencoded: parts end at `&` and also at `;`, and a value ends at its second `=`, so
 * what is not percent-encoded is lost.
 */
function decodeForm(text: string): Record<string, string> {
  const params: Record<string, string> = {};
  for (const part of text.split(/[&;]/)) {
    if (part === "") continue;
    const [key = "", value = ""] = part.split("=").map(decode);
    const before = params[key];
    params[key] = before === undefined ? value : `${before}\0${value}`;
  }
  return params;
}

function decode(text: string): string {
  const spaced = text.replaceAll("+", " ");
  try {
    return decodeURIComponent(spaced);
  } catch {
    return spaced;
  }
}

const PERL = "at /usr/share/perl5/PVE/APIServer/AnyEvent.pm line 917.\n";

/** decode_json, with Perl's words for the errors; null becomes garbage, as it does in real configs. */
function decodeJson(text: string): Record<string, string> {
  if (text === "") {
    throw new PlainRefusal(
      500,
      `malformed JSON string, neither tag, array, object, number, string or atom, at character offset 0 (before "(end of string)") ${PERL}`,
    );
  }
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch {
    throw new PlainRefusal(500, `'"' expected, at character offset 1 (before "${text.slice(1, 20)}") ${PERL}`);
  }
  const params: Record<string, string> = {};
  for (const [key, value] of Object.entries(typeof parsed === "object" && parsed !== null ? parsed : {})) {
    if (value === true || value === false) params[key] = value ? "1" : "0";
    else if (value === null) params[key] = JSON_NULL;
    else params[key] = Array.isArray(value) ? value.join("\0") : String(value);
  }
  return params;
}

/** Refuses what PVE's server refuses by the headers alone, before it knows who asks. */
export function checkTransfer(request: IncomingMessage): void {
  const encoding = request.headers["transfer-encoding"];
  if (encoding === undefined) return;
  const text =
    encoding.toLowerCase() === "chunked"
      ? "chunked transfer encoding not supported"
      : `Unknown transfer encoding '${encoding}'`;
  throw new PlainRefusal(501, text);
}

/** The parameters of body and query together; the query wins. */
export async function readParams(request: IncomingMessage, query: string): Promise<Record<string, string>> {
  const method = request.method ?? "GET";
  const length = Number(request.headers["content-length"] ?? 0);
  const contentType = request.headers["content-type"];
  const kind = contentType?.split(/\s*[;,]\s*/)[0];
  if (length > 0) {
    if (method !== "POST" && method !== "PUT") throw new PlainRefusal(501, `Unexpected content for method '${method}'`);
    if (length > MAX_POST) throw new PlainRefusal(501, "for data too large");
    if (
      kind !== undefined &&
      kind !== "" &&
      kind !== "application/x-www-form-urlencoded" &&
      kind !== "application/json"
    ) {
      throw new PlainRefusal(506, `upload 'Content-Type '${contentType}' not implemented`);
    }
  }
  const chunks: Buffer[] = [];
  for await (const chunk of request as AsyncIterable<Buffer>) chunks.push(chunk);
  const body = Buffer.concat(chunks).toString("utf8");
  const takesBody = method === "POST" || method === "PUT";
  const fromBody = !takesBody ? {} : kind === "application/json" ? decodeJson(body) : decodeForm(body);
  const params = { ...fromBody, ...decodeForm(query) };
  const { _dc: _, ...rest } = params;
  return rest;
}

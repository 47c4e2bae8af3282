/** What an exchange with PVE says of the node that it was for: pure. */
import type { Answer } from "./exchange.ts";

/**
 * The host that we ask checks login and rights itself and passes the request on to the node's proxy; calls marked
 * `protected` go on from there to the node's daemon, which does the work. So 401, 403 and 501 say nothing of the node, an
 * unprotected read says nothing of the daemon, and 595 to 599 are the asked host's word that the node did not answer.
 * That a host of ours can't be reached is no fault of the node behind it. Source: PVE::HTTPServer::rest_handler.
 */
export function evidenceOf(
  { method, path }: { method: string; path: string },
  { status, reason, body }: Pick<Answer, "status" | "reason" | "body">,
): "alive" | "dead" | null {
  if (status >= 595 && status <= 599) return "dead";
  if (method === "GET" && !PROTECTED_READS.test(path)) return null;
  if (status !== 200 && status !== 400 && status !== 500) return null;
  // The asked host does not know the node.
  return status === 500 && /hostname lookup/.test(`${reason} ${body}`) ? null : "alive";
}

/** Reads that pvedaemon answers (`protected` in PVE's API schema), as far as we use them. */
const PROTECTED_READS = /\/lxc$|\/status\/current$|\/interfaces$|\/tasks\/[^/]+\/(status|log)$/;

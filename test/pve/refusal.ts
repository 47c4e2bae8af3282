/** How PVE says no: a status, and the same text in reason phrase and body. Nearly everything is a 500. */
export class Refusal extends Error {
  readonly status: number;
  readonly errors: Record<string, string> | undefined;
  constructor(status: number, text: string, errors?: Record<string, string>) {
    super(text);
    this.status = status;
    this.errors = errors;
  }
}

export function refuse(text: string): Refusal {
  return new Refusal(500, text);
}

export function invalid(errors: Record<string, string>): Refusal {
  return new Refusal(400, "Parameter verification failed.", errors);
}

export function forbidden(what?: string): Refusal {
  return new Refusal(403, what === undefined ? "Permission check failed" : `Permission check failed (${what})`);
}

export function missingConfig(node: string, vmid: number): Refusal {
  return refuse(`Configuration file 'nodes/${node}/lxc/${vmid}.conf' does not exist`);
}

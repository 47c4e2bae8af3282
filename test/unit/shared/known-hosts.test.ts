import { expect, test } from "vitest";
import { findKnownHosts, parseKnownHosts } from "../../../shared/known-hosts.ts";

const KEY = "AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl";

const FILE = `
# a comment

pve1,10.0.0.1 ssh-ed25519 ${KEY} root@pve1
[pve2]:2222,[10.0.0.2]:2222 ssh-ed25519 ${KEY}
*.lan,!bad.lan ecdsa-sha2-nistp256 ${KEY}
node-? ssh-rsa ${KEY}
@revoked pve3 ssh-ed25519 ${KEY}
@cert-authority *.example.com ssh-ed25519 ${KEY}
# hashed by ssh-keygen -H: hashed.example.org, and that on port 2222
|1|sgTOiNDcunlBrw5MoQSdrSVFy/M=|4+3wz8B8C947jIFZPxoy9jxHMpo= ssh-ed25519 ${KEY}
|1|0fFJM6GhiUGN6kZcB7aJ4CPA23k=|BEigBBSmFfRjbRKHb5s2SK9QFQw= ssh-ed25519 ${KEY}
only-two ssh-ed25519
pve4 ssh-ed25519 b@d
`;

const found = (host: string, port = 22) =>
  findKnownHosts(parseKnownHosts(FILE), host, port).map(({ names, marker }) => marker ?? names);

test.each([
  ["pve1", 22, "pve1,10.0.0.1"],
  ["PVE1", 22, "pve1,10.0.0.1"],
  ["10.0.0.1", 22, "pve1,10.0.0.1"],
  ["pve2", 2222, "[pve2]:2222,[10.0.0.2]:2222"],
  ["10.0.0.2", 2222, "[pve2]:2222,[10.0.0.2]:2222"],
  ["good.lan", 22, "*.lan,!bad.lan"],
  ["node-7", 22, "node-?"],
  ["pve3", 22, "@revoked"],
  ["hashed.example.org", 22, "|1|sgTOiNDcunlBrw5MoQSdrSVFy/M=|4+3wz8B8C947jIFZPxoy9jxHMpo="],
  ["hashed.example.org", 2222, "|1|0fFJM6GhiUGN6kZcB7aJ4CPA23k=|BEigBBSmFfRjbRKHb5s2SK9QFQw="],
])("%s port %i is known", (host, port, names) => {
  expect(found(host, port)).toEqual([names]);
});

test.each([
  ["pve1", 2222],
  ["pve2", 22],
  ["bad.lan", 22],
  ["lan", 22],
  ["xlan", 22],
  ["node-77", 22],
  ["10.0.0.11", 22],
  ["pve4", 22],
  ["x.example.com", 22],
  ["only-two", 22],
])("%s port %i is not", (host, port) => {
  expect(found(host, port)).toEqual([]);
});

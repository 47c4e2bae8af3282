import { X509Certificate } from "node:crypto";
import { generate } from "selfsigned";

export interface Certificate {
  key: string;
  cert: string;
  fingerprint: string;
}

/** A self-signed certificate, for 127.0.0.1 and localhost by default; elliptic, since RSA keys take most of a second to make. */
export async function makeCertificate(
  more: { names?: readonly string[]; notBefore?: Date; notAfter?: Date } = {},
): Promise<Certificate> {
  const made = await generate([{ name: "commonName", value: "pve1.stand-in" }], {
    keyType: "ec",
    curve: "P-256",
    algorithm: "sha256",
    ...(more.notBefore === undefined ? {} : { notBeforeDate: more.notBefore }),
    ...(more.notAfter === undefined ? {} : { notAfterDate: more.notAfter }),
    extensions: [
      { name: "basicConstraints", cA: true, critical: true },
      { name: "keyUsage", digitalSignature: true, keyCertSign: true, critical: true },
      {
        name: "subjectAltName",
        altNames: more.names?.map((value) => ({ type: 2 as const, value })) ?? [
          { type: 7, ip: "127.0.0.1" },
          { type: 2, value: "localhost" },
        ],
      },
    ],
  });
  return { key: made.private, cert: made.cert, fingerprint: new X509Certificate(made.cert).fingerprint256 };
}

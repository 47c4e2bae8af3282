import { expect, test } from "vitest";
import { FleetError } from "../../../shared/errors.ts";
import { toRetryMs } from "../../../workers/webhooks/deliver.ts";
import { assertInReach, isInReach } from "../../../workers/webhooks/reach.ts";

const reach = (url: string, ...allowPrivate: string[]) => ({ name: "x", url: new URL(url), allowPrivate });
const anywhere = reach("https://app.example.com");

test("only public addresses are in reach, in whatever dress the others come", () => {
  for (const address of ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"])
    expect(isInReach(address, anywhere)).toBe(true);
  const hidden = [
    "127.0.0.1",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "169.254.169.254",
    "0.0.0.0",
    "198.18.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::ffff:127.0.0.1",
    "::ffff:a9fe:a9fe",
    "::127.0.0.1",
    "64:ff9b::7f00:1",
    "2002:7f00:1::",
    "fe80::1",
    "fd00:ec2::254",
    "fec0::1",
    "ff02::1",
  ];
  expect(hidden.filter((address) => isInReach(address, anywhere))).toEqual([]);
});

test("what is listed is in reach, and over plain HTTP nothing else", () => {
  const listed = reach("http://app.lan", "10.1.0.0/16", "fd00::/8");
  for (const address of ["10.1.2.3", "::ffff:10.1.2.3", "fd00::1"]) expect(isInReach(address, listed)).toBe(true);
  for (const address of ["10.2.0.1", "8.8.8.8", "fe80::1"]) expect(isInReach(address, listed)).toBe(false);
});

test("an address in the URL is looked at at the start, as the URL's reader understands it", () => {
  for (const host of ["[::ffff:127.0.0.1]", "127.1", "0x7f000001", "2130706433", "[::1]", "169.254.169.254"])
    expect(() => assertInReach(reach(`https://${host}/`)), host).toThrow("not_configured");
  expect(() => assertInReach(reach("https://127.1/", "127.0.0.0/8"))).not.toThrow();
  expect(() => assertInReach(reach("https://localhost/"))).not.toThrow(); // looked at when it is connected to
});

test("tries come at 1 s, 3 s, 9 s … 4 h, about a day in all, no sooner than the receiver wants, and never once it is gone", () => {
  const failed = (facts = {}) => new FleetError("webhook_failed", "no", { facts });
  const delays = Array.from({ length: 14 }, (_, index) => toRetryMs(failed(), index + 1, 0.5));
  expect(delays.slice(0, 4)).toEqual([1_000, 3_000, 9_000, 27_000]);
  expect(delays.at(-1)).toBe(4 * 3_600_000);
  const hours = delays.reduce((sum, ms) => sum + ms, 0) / 3_600_000;
  expect(hours).toBeGreaterThan(20);
  expect(hours).toBeLessThan(26);
  expect(toRetryMs(failed(), 1, 0)).toBe(750);
  expect(toRetryMs(failed({ status: 503, retryAfterSec: 60 }), 1, 0.5)).toBe(60_000);
  expect(toRetryMs(failed({ status: 429, retryAfterSec: 1 }), 5, 0.5)).toBe(81_000);
  expect(toRetryMs(failed({ status: 410 }), 1, 0.5)).toBe(-1);
});

import { describe, expect, it } from "vitest";
import type { ErrorFacts, FleetErrorCode } from "../../../shared/errors.ts";
import { isTaskSuccess, reasonIn, saysNothing, taskError, toData, toPveError } from "../../../workers/pve/errors.ts";
import { Upid } from "../../../workers/pve/upid.ts";

type Row = [status: number, call: string, text: string, code: FleetErrorCode, facts?: ErrorFacts];

/** Recorded on a real PVE 8.4.1; the texts are what it said, word for word. */
const RECORDED: Row[] = [
  [403, "DELETE /nodes/pve1/lxc/201", "Permission check failed (/vms/201, VM.Allocate)", "forbidden"],
  [
    403,
    "GET /nodes/pve1/dns",
    "Permission check failed (/nodes/pve1, Sys.Audit)",
    "forbidden",
    { path: "/nodes/pve1", privilege: "Sys.Audit" },
  ],
  [
    403,
    "POST /nodes/pve1/lxc/9001/clone",
    "Permission check failed (/vms/9001, VM.Clone)",
    "forbidden",
    { path: "/vms/9001", privilege: "VM.Clone" },
  ],
  [
    403,
    "POST /nodes/pve1/lxc/9001/clone",
    "Permission check failed (pool 'nope' does not exist)",
    "not_configured",
    { pool: "nope" },
  ],
  [
    403,
    "PUT /nodes/pve1/lxc/601/config",
    "Permission check failed (changing feature flags (except nesting) is only allowed for root@pam)",
    "forbidden",
  ],
  [
    403,
    "PUT /nodes/pve1/lxc/601/config",
    "Permission check failed (mount point type bind is only allowed for root@pam)",
    "forbidden",
  ],
  [
    500,
    "DELETE /nodes/pve1/lxc/201",
    "Configuration file 'nodes/pve1/lxc/201.conf' does not exist",
    "container_missing",
    { vmid: 201, soughtOn: "pve1" },
  ],
  [500, "DELETE /nodes/pve1/lxc/205", "can't remove CT 205 - protection mode enabled", "protected"],
  [500, "DELETE /nodes/pve1/lxc/210", "unable to destroy CT 210 - container is running", "container_running"],
  [
    500,
    "GET /nodes/nope/lxc",
    "hostname lookup 'nope' failed - failed to get address info for: nope: Temporary failure in name resolution",
    "node_unreachable",
    { sought: "nope" },
  ],
  [
    500,
    "GET /nodes/pve1/lxc/211/snapshot/nope/config",
    "snapshot 'nope' does not exist",
    "snapshot_not_found",
    { snapshot: "nope" },
  ],
  [500, "POST /nodes/pve1/lxc", "CT 201 already exists on node 'pve1'", "vmid_taken", { taken: 201, takenOn: "pve1" }],
  [
    500,
    "POST /nodes/pve1/lxc/9001/clone",
    "CT 888 already exists on node 'pve2'",
    "vmid_taken",
    { taken: 888, takenOn: "pve2", source: 9001 },
  ],
  [
    500,
    "POST /nodes/pve1/lxc",
    "unable to create CT 420 - CT 420 already exists on node 'pve1'",
    "vmid_taken",
    { taken: 420 },
  ],
  [
    500,
    "POST /nodes/pve1/lxc/211/clone",
    "Cannot do full clones on a running container without snapshots",
    "pve_rejected",
  ],
  [500, "POST /nodes/pve1/lxc/211/snapshot", "unable to use snapshot name 'current' (reserved name)", "invalid_input"],
  [
    500,
    "POST /nodes/pve1/lxc/211/template",
    "unable to create template, because CT contains snapshots",
    "pve_rejected",
  ],
  [
    500,
    "POST /nodes/pve1/lxc/211/template",
    "you can't convert a CT to template if the CT is running",
    "container_running",
  ],
  [500, "POST /nodes/pve1/lxc/9001/template", "you can't convert a template to a template", "pve_rejected"],
  [
    500,
    "POST /nodes/pve1/lxc/8888/clone",
    "Configuration file 'nodes/pve1/lxc/8888.conf' does not exist",
    "template_not_found",
  ],
  [500, "POST /nodes/pve1/lxc/9001/clone", "no such cluster node 'nope'", "node_unavailable", { target: "nope" }],
  [500, "POST /nodes/pve1/lxc/9001/clone", "parameter 'storage' not allowed for linked clones", "invalid_input"],
  [500, "POST /nodes/pve1/lxc/9001/clone", "snapshot 'nope' does not exist", "snapshot_not_found"],
  [500, "POST /nodes/pve1/lxc/9001/clone", "storage 'nope' does not exist", "storage_not_found", { storage: "nope" }],
  [
    500,
    "PUT /nodes/pve1/lxc/201/config",
    "detected modified configuration - file changed by other user? Try again.",
    "config_changed",
  ],
  [500, "PUT /nodes/pve1/lxc/201/config", "no options specified", "invalid_input"],
  [500, "PUT /nodes/pve1/lxc/211/resize", "unable to shrink disk size", "invalid_input"],
  [
    500,
    "PUT /nodes/pve1/lxc/440/config",
    "can't lock file '/run/lock/lxc/pve-config-440.lock' - got timeout",
    "container_locked",
    { lock: "file", vmid: 440 },
  ],
  [500, "PUT /nodes/pve1/lxc/601/config", "CT is locked (backup)", "container_locked", { lock: "backup" }],
  [500, "DELETE /nodes/pve1/lxc/430", "CT is locked (create)", "container_locked", { lock: "create", vmid: 430 }],
  [500, "POST /nodes/pve1/lxc/9001/clone", "CT is locked (disk)", "source_locked", { lock: "disk", source: 9001 }],
  [500, "POST /nodes/pve1/lxc/201/status/start", "CT 201 already running", "already_running"],
  [500, "POST /nodes/pve1/lxc/100/status/stop", "CT 100 not running", "already_stopped"],
  [501, "GET /nosuchpath", "Method 'GET /nosuchpath' not implemented", "pve_rejected"],
];

/** From pve.md, and from `die` lines of PVE's sources where no machine at hand would do it. */
const KNOWN: Row[] = [
  [500, "POST /nodes/pve1/lxc/9001/clone", "got no worker upid - start worker failed", "outcome_unknown"],
  [500, "POST /nodes/pve1/lxc/9001/clone", "cluster not ready - no quorum?", "no_quorum"],
  [
    500,
    "PUT /nodes/pve1/lxc/201/config",
    "unable to open file '/etc/pve/nodes/pve1/lxc/201.conf.tmp.1234' - Permission denied",
    "no_quorum",
  ],
  [500, "POST /nodes/pve1/lxc/9001/clone", "cfs-lock 'file-user_cfg' error: no quorum!", "no_quorum"],
  [
    500,
    "POST /nodes/pve1/lxc/9001/clone",
    "cfs-lock 'storage-ceph' error: got lock request timeout",
    "pve_overloaded",
    { lock: "storage-ceph" },
  ],
  [
    500,
    "POST /nodes/pve1/lxc/9001/clone",
    "Linked clone feature for 'local:9001/base-9001-disk-0.raw' is not available",
    "linked_clone_unsupported",
    { volume: "local:9001/base-9001-disk-0.raw" },
  ],
  [
    500,
    "POST /nodes/pve1/lxc/9001/clone",
    "can't clone CT to node 'pve2' (CT uses local storage)",
    "linked_clone_unsupported",
    { target: "pve2" },
  ],
  [
    500,
    "POST /nodes/pve1/lxc/211/clone",
    "Full clone of a running container is only possible from a snapshot",
    "pve_rejected",
  ],
  [
    500,
    "DELETE /nodes/pve1/lxc/9001",
    "base volume 'base-9001-disk-0' is still in use by linked clones",
    "template_in_use",
  ],
  [500, "PUT /nodes/pve1/lxc/9/resize", "storage 'ceph' is not online", "pve_failed"],
  [
    500,
    "PUT /nodes/pve1/lxc/201/config",
    "storage 'nas' does not allow content type 'rootdir' (Container)",
    "storage_not_found",
    { storage: "nas" },
  ],
  [
    500,
    "GET /nodes/pve1/lxc/201/interfaces",
    "command 'nsenter -t 4711 --net -- ip --json a' failed: exit code 1",
    "pve_failed",
  ],
  [500, "PUT /nodes/pve1/lxc/201/config", "command 'lxc-device' failed: exit code 1", "pve_rejected"],
  [500, "GET /nodes/pve1/storage", "storage 'x' is not available on node 'pve1'", "storage_not_found"],
  [500, "POST /nodes/pve1/lxc/201/status/start", "something that nobody has seen", "pve_rejected"],
  [
    500,
    "POST /nodes/pve1/lxc/201/status/start",
    "unable to fork worker - Resource temporarily unavailable",
    "pve_failed",
  ],
];

function errorOf(status: number, call: string, text: string) {
  const [method = "", path = ""] = call.split(" ");
  const node = /^\/nodes\/([^/]+)/.exec(path)?.[1];
  const place = { method, path, ...(node === undefined ? {} : { node }) };
  return {
    withBody: toPveError({
      ...place,
      status,
      reason: text,
      body: JSON.stringify({ data: null, message: `${text}\n` }),
    }),
    // Before 2025 there was no message.
    reasonOnly: toPveError({ ...place, status, reason: text, body: '{"data":null}' }),
  };
}

describe("PVE's refusals", () => {
  it.each([...RECORDED, ...KNOWN])("%i %s: %s -> %s", (status, call, text, code, facts) => {
    const { withBody, reasonOnly } = errorOf(status, call, text);
    expect(withBody.code).toBe(code);
    expect(withBody.facts).toMatchObject({ status, call, ...facts });
    expect(reasonOnly).toEqual(withBody);
  });

  it("names the fields that PVE does not take", () => {
    const errors = { memory: "value must have a minimum value of 16", hostname: "invalid format - not a DNS name\n" };
    const body = JSON.stringify({ data: null, message: "Parameter verification failed.\n", errors });
    const call = { method: "POST", path: "/nodes/pve1/lxc", node: "pve1" };
    const error = toPveError({ ...call, status: 400, reason: "Parameter verification failed.", body });
    expect(error.code).toBe("invalid_input");
    expect(error.facts["fields"]).toEqual(["memory", "hostname"]);
    expect(error.text).toContain("memory: value must have a minimum value of 16");
  });

  it.each<[string, string, FleetErrorCode]>([
    ["upid", "no such task", "task_lost"],
    ["upid", "unable to parse worker upid", "invalid_input"],
    ["vmid", "VM 201 already exists", "vmid_taken"],
    ["newid", "invalid format - value does not look like a valid VM ID\n", "invalid_input"],
    ["skiplock", "Only root may use this option.", "forbidden"],
  ])("knows what a refused %s means: %s", (field, text, code) => {
    const body = JSON.stringify({ data: null, message: "Parameter verification failed.\n", errors: { [field]: text } });
    const failure = { method: "GET", path: "/x", status: 400, reason: "Parameter verification failed.", body };
    expect(toPveError(failure).code).toBe(code);
  });

  it("shows how to give the missing privilege", () => {
    const body = JSON.stringify({ data: null, message: "Permission check failed (/vms/201, VM.Audit)\n" });
    const call = { method: "GET", path: "/nodes/pve1/lxc/201/config", tokenId: "cmux@pve!fleet" };
    const error = toPveError({ ...call, status: 403, reason: "x", body });
    expect(error.text).toContain(
      "pveum acl modify /vms --users 'cmux@pve' --tokens 'cmux@pve!fleet' --roles PVEVMAdmin",
    );
  });

  it.each([
    // Of PVE's own roles Administrator alone has it.
    ["/, Sys.Modify", "pveum role add FleetSysModify -privs Sys.Modify && pveum acl modify / --users 'cmux@pve'"],
    ["/, Sys.Modify for modifying tag 'mine'", "pvesh set /cluster/options --user-tag-access user-allow=free"],
  ])("gives no more than it takes: %s", (what, command) => {
    const body = JSON.stringify({ data: null, message: `Permission check failed (${what})\n` });
    const call = { method: "PUT", path: "/nodes/pve1/lxc/201/config", tokenId: "cmux@pve!fleet" };
    const error = toPveError({ ...call, status: 403, reason: "x", body });
    expect([error.code, error.text]).toEqual(["forbidden", expect.stringContaining(command)]);
  });

  it.each([
    "No ticket",
    "invalid token value!",
    "no such token 'nope' for user 'root@pam'",
    "token 'exp' access expired",
    "user 'tmp@pve' is disabled",
    "Authentication failed!",
  ])("gives PVE's reason for a 401: %s", (reason) => {
    const error = toPveError({ method: "POST", path: "/nodes/pve1/lxc/9001/clone", status: 401, reason, body: "" });
    expect(error.code).toBe("unauthorized");
    expect(error.text).toContain(reason);
  });

  it("leaves secrets out of texts and facts", () => {
    const body = JSON.stringify({ data: null, errors: { env: "invalid format - got 'TOKEN=hunter22'\n" } });
    const secrets = ["TOKEN=hunter22", "hunter22"];
    const call = { method: "PUT", path: "/nodes/pve1/lxc/201/config", secrets };
    const error = toPveError({ ...call, status: 400, reason: "Parameter verification failed.", body });
    expect(JSON.stringify([error.message, error.facts])).not.toContain("hunter22");
    expect(error.facts["fields"]).toEqual(["env"]);
  });
});

describe("answers of the proxying host", () => {
  it.each<[string, number, string, FleetErrorCode]>([
    ["GET", 595, "No route to host", "node_unreachable"],
    ["GET", 595, "Connection refused", "node_unreachable"],
    ["GET", 596, "Connection timed out", "node_unreachable"],
    ["GET", 599, "Too many redirections", "node_unreachable"],
    // Should mean that the connection was never made; a change is not trusted to that.
    ["POST", 595, "No route to host", "outcome_unknown"],
    ["POST", 595, "Connection refused", "outcome_unknown"],
    ["POST", 595, "Connection timed out", "outcome_unknown"],
    // May run later.
    ["POST", 596, "Connection timed out", "outcome_unknown"],
    ["DELETE", 596, "Broken pipe", "outcome_unknown"],
    ["PUT", 599, "", "outcome_unknown"],
  ])("%s %i %s -> %s", (method, status, reason, code) => {
    const error = toPveError({ method, path: "/nodes/pve2/lxc/1", node: "pve2", status, reason, body: "" });
    expect(error.code).toBe(code);
  });
});

describe("answers that PVE does not give", () => {
  const page = "<html><body>Bad Gateway</body></html>";
  it.each<[string, number, string, FleetErrorCode]>([
    ["GET", 200, page, "pve_bad_reply"],
    ["GET", 200, "", "pve_bad_reply"],
    ["GET", 200, "[]", "pve_bad_reply"],
    ["GET", 200, '{"success":1}', "pve_bad_reply"],
    ["GET", 502, page, "pve_bad_reply"],
    ["GET", 301, "", "pve_bad_reply"],
    ["GET", 503, "no healthy upstream", "pve_bad_reply"],
    ["PUT", 204, "", "outcome_unknown"],
    ["POST", 504, '{"message":"timeout"}', "outcome_unknown"],
    ["POST", 200, page, "outcome_unknown"],
    ["POST", 200, "", "outcome_unknown"],
    ["POST", 502, page, "outcome_unknown"],
    ["PUT", 500, "", "outcome_unknown"],
  ])("%s %i %j -> %s", (method, status, body, code) => {
    const answer = { status, reason: status === 500 ? "Internal Server Error" : "", location: "", body };
    expect(() => toData(answer, { method, path: "/version" })).toThrow(expect.objectContaining({ code }));
  });

  it("takes null for data", () => {
    const answer = { status: 200, reason: "OK", location: "", body: '{"data":null}' };
    expect(toData(answer, { method: "PUT", path: "/x" })).toBeNull();
  });
});

describe("ends of tasks", () => {
  const upid = (type: string, id: string) =>
    Upid.parse(`UPID:pve1:00000B17:0003FE80:6B048817:${type}:${id}:root@pam!full:`);

  it("takes warnings for a success, as PVE does", () => {
    expect(["OK", "WARNINGS: 2"].every(isTaskSuccess)).toBe(true);
    expect(["", "ok", "WARNINGS: x", "WARNINGS: 2 and more", "unexpected status"].some(isTaskSuccess)).toBe(false);
  });

  it.each<[type: string, id: string, exitstatus: string, code: FleetErrorCode, facts?: ErrorFacts]>([
    [
      "vzstart",
      "401",
      "Configuration file 'nodes/pve1/lxc/401.conf' does not exist",
      "container_missing",
      { vmid: 401 },
    ],
    ["vzstart", "430", "CT is locked (create)", "container_locked", { lock: "create" }],
    ["vzstart", "201", "startup for container '201' failed", "start_failed"],
    ["vzstart", "201", "command 'systemctl start pve-container@201' failed: exit code 1", "start_failed"],
    ["vzstart", "9001", "you can't start a CT if it's a template", "task_failed"],
    ["vzstop", "440", "can't lock file '/run/lock/lxc/pve-config-440.lock' - got timeout", "container_locked"],
    ["vzdump", "9001", "can't acquire lock '/var/run/vzdump.lock' - got timeout", "source_locked", { lock: "vzdump" }],
    ["vzshutdown", "440", "container did not stop", "shutdown_refused"],
    ["vzshutdown", "440", "unexpected status", "task_lost"],
    ["vzshutdown", "440", "unable to read tail (got 0 bytes)", "task_lost"],
    ["vzsnapshot", "100", "snapshot feature is not available", "snapshot_unsupported"],
    ["vzsnapshot", "211", "snapshot name 's1' already used", "snapshot_exists", { snapshot: "s1" }],
    ["vzrollback", "211", "snapshot 'nope' does not exist", "snapshot_not_found", { snapshot: "nope" }],
    [
      "vzcreate",
      "301",
      "unable to create CT 301 - volume 'local:vztmpl/none.tar.gz' does not exist",
      "template_not_found",
    ],
    ["vzclone", "9001", "clone failed: interrupted by signal", "task_failed", { interrupted: true, source: 9001 }],
    [
      "vzclone",
      "9001",
      "clone failed: can't lock file '/run/lock/lxc/pve-config-9001.lock' - got timeout",
      "source_locked",
    ],
    [
      "vzclone",
      "9001",
      "clone failed: can't lock file '/run/lock/lxc/pve-config-301.lock' - got timeout",
      "container_locked",
    ],
    [
      "vzclone",
      "9001",
      "clone failed: Configuration file 'nodes/pve1/lxc/301.conf' does not exist",
      "container_missing",
    ],
    [
      "vzclone",
      "9001",
      "clone failed: cfs-lock 'storage-ceph' error: got lock request timeout",
      "pve_overloaded",
      { lock: "storage-ceph" },
    ],
    ["vzclone", "9001", "clone failed: command 'rsync' failed: No space left on device (28)", "storage_full"],
    [
      "vzclone",
      "9001",
      "clone failed: lvcreate 'pve/vm-301-disk-0' error: Cannot create new thin volume, free space in thin pool pve/data reached threshold.",
      "storage_full",
    ],
    ["vzclone", "9001", "clone failed: zfs error: cannot create 'x': out of space", "storage_full"],
    ["vzclone", "9001", "clone failed: what nobody has seen", "task_failed"],
  ])("%s of %s: %s -> %s", (type, id, exitstatus, code, facts) => {
    const error = taskError(exitstatus, upid(type, id));
    expect(error.code).toBe(code);
    expect(error.text).toBe(exitstatus);
    expect(error.facts).toMatchObject({ node: "pve1", task: type, ...facts });
  });

  it("name the right that a task lacks, with the command that gives it", () => {
    const text = "unable to restore CT 301 - Permission check failed (/sdn/zones/localnetwork/vmbr0, SDN.Use)";
    const error = taskError(text, upid("vzrestore", "301"));
    expect(error.code).toBe("forbidden");
    expect(error.facts).toMatchObject({
      task: "vzrestore",
      path: "/sdn/zones/localnetwork/vmbr0",
      privilege: "SDN.Use",
    });
    expect(error.text).toContain("pveum acl modify /sdn/zones/localnetwork/vmbr0 --users 'root@pam'");
  });

  it.each<[string, string[], string]>([
    [
      "migration aborted",
      [
        "2026-11-27 18:31:23 starting migration of CT 201 to node 'pve2' (10.0.0.2)",
        "2026-11-27 18:31:23 can't migrate local volume 'tank:base-9002-disk-0/vm-201-disk-0': clone of 'base-9002-disk-0'",
        "2026-11-27 18:31:23 ERROR: can't migrate CT - check log",
        "2026-11-27 18:31:23 ERROR: migration aborted (duration 00:00:00): can't migrate CT - check log",
        "TASK ERROR: migration aborted",
      ],
      "can't migrate local volume 'tank:base-9002-disk-0/vm-201-disk-0': clone of 'base-9002-disk-0'",
    ],
    [
      "migration aborted",
      [
        "2026-11-27 18:31:23 ERROR: migration aborted (duration 00:00:10): CT is locked (backup)",
        "TASK ERROR: migration aborted",
      ],
      "CT is locked (backup)",
    ],
    [
      "migration problems",
      [
        "2026-11-27 18:31:23 ERROR: removing local copy of 'tank:vm-201-disk-0' failed - dataset is busy",
        "2026-11-27 18:31:23 ERROR: migration finished with problems (duration 00:00:07)",
        "TASK ERROR: migration problems",
      ],
      "removing local copy of 'tank:vm-201-disk-0' failed - dataset is busy",
    ],
    [
      "job errors",
      [
        "INFO: Starting Backup of VM 9001 (lxc)",
        "ERROR: Backup of VM 9001 failed - There is a max backup limit of 1 enforced by the target storage",
        "INFO: Backup job finished with errors",
        "ERROR: could not notify via target 'mail-to-root'",
        "TASK ERROR: job errors",
      ],
      "There is a max backup limit of 1 enforced by the target storage",
    ],
  ])("%s: the log has the reason", (exitstatus, lines, reason) => {
    expect(saysNothing(exitstatus)).toBe(true);
    expect(reasonIn(lines)).toBe(reason);
    expect(reasonIn([lines.at(-1) ?? ""])).toBeUndefined();
  });
});

import { clusterRoutes } from "./api/cluster.ts";
import { backupRoutes } from "./api/lxc-backup.ts";
import { cloneRoutes } from "./api/lxc-clone.ts";
import { configRoutes } from "./api/lxc-config.ts";
import { makeRoutes } from "./api/lxc-make.ts";
import { migrateRoutes } from "./api/lxc-migrate.ts";
import { powerRoutes } from "./api/lxc-power.ts";
import { snapshotRoutes } from "./api/lxc-snapshot.ts";
import { statusRoutes } from "./api/lxc-status.ts";
import { volumeRoutes } from "./api/lxc-volume.ts";
import { nodeRoutes } from "./api/nodes.ts";
import { rightsRoutes } from "./api/rights.ts";
import { taskRoutes } from "./api/tasks.ts";
import type { Route } from "./router.ts";

export const ROUTES: readonly Route[] = [
  ...clusterRoutes,
  ...nodeRoutes,
  ...rightsRoutes,
  ...taskRoutes,
  ...statusRoutes,
  ...configRoutes,
  ...cloneRoutes,
  ...makeRoutes,
  ...powerRoutes,
  ...migrateRoutes,
  ...snapshotRoutes,
  ...volumeRoutes,
  ...backupRoutes,
];

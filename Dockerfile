# The worker: ops pages and all roles in one process by default (FLEET_ROLES). Node 24 runs the TypeScript as it is.

FROM node:24-slim AS packages
WORKDIR /app
COPY package.json package-lock.json ./
# The image has Node 24, so the `node` package (a devDependency) stays out; what is left needs no install scripts:
# the one native part, msgpackr's, comes prebuilt, and has a fallback in JavaScript.
RUN npm ci --omit=dev --ignore-scripts --no-audit --no-fund

FROM node:24-slim
ENV NODE_ENV=production
WORKDIR /app
COPY --from=packages /app/node_modules ./node_modules
COPY package.json ./
COPY shared ./shared
COPY producers ./producers
COPY workers ./workers
# Nothing here is the worker's to write: root owns the files.
USER node
# The ops pages are the container's own until OPS_HOST=0.0.0.0 and OPS_LOGINS are set.
ENV OPS_PORT=3000
EXPOSE 3000
CMD ["node", "workers/main.ts"]

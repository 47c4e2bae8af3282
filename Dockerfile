# Two images of one source: `worker` (the last one) for every role, `demo` with the stand-in for PVE. Node 24 runs the
# TypeScript as it is.

# The image has Node 24, so the `node` package (a devDependency) stays out; what is left needs no install scripts: the
# one native part, msgpackr's, comes prebuilt, and has a fallback in JavaScript.
FROM node:24-slim AS packages
WORKDIR /app
COPY package.json package-lock.json ./
RUN npm ci --omit=dev --ignore-scripts --no-audit --no-fund
# Half of it nothing here reads: maps, types, texts, and the compiler that valibot may have beside it.
RUN rm -rf node_modules/typescript node_modules/@typescript && \
  find node_modules -type f \( -name '*.map' -o -name '*.d.ts' -o -name '*.d.cts' -o -name '*.d.mts' -o -iname '*.md' \) \
  ! -iname 'licen[cs]e*' -delete

FROM node:24-slim AS demo
WORKDIR /app
COPY package.json package-lock.json ./
RUN npm ci --ignore-scripts --no-audit --no-fund
COPY shared ./shared
COPY producers ./producers
COPY workers ./workers
COPY test ./test
USER node
EXPOSE 3000
CMD ["node", "test/demo/main.ts"]

FROM node:24-slim AS worker
ENV NODE_ENV=production
WORKDIR /app
COPY --from=packages /app/node_modules ./node_modules
COPY package.json ./
COPY shared ./shared
COPY producers ./producers
COPY workers ./workers
# Nothing here is the worker's to write: root owns the files, and the root file system may be read-only.
USER node
# The ops pages are the container's own until OPS_HOST=0.0.0.0 and OPS_LOGINS are set.
ENV OPS_PORT=3000
EXPOSE 3000 3080
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
  CMD ["node", "-e", "fetch('http://127.0.0.1:3000/healthz').then((r) => process.exit(r.ok ? 0 : 1), () => process.exit(1))"]
# Some 40 MB of its heap live; V8 would let several hundred pile up before it clears them.
CMD ["node", "--max-semi-space-size=16", "--max-old-space-size=768", "workers/main.ts"]

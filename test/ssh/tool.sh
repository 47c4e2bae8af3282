#!/bin/bash
# A node's tool, as its wrapper on the PATH runs it: tool.sh CONTROL_PORT NODE TOOL ARGS...
# In bash alone, since a node may run hundreds a minute and every other program takes ten times as long to start.
port=$1
shift
body=$(printf '%s\0' "$@" | base64 -w0)
exec 8<>"/dev/tcp/127.0.0.1/$port" || exit 255
printf 'POST /node-tool HTTP/1.0\r\nContent-Length: %s\r\n\r\n%s' "${#body}" "$body" >&8
while IFS= read -r line <&8 && [ "$line" != $'\r' ]; do :; done
mapfile -d '' -t fields <&8
exec 8<&-
case ${fields[0]-} in
  end)
    printf %s "${fields[2]}"
    printf %s "${fields[3]}" >&2
    exit "${fields[1]}"
    ;;
  enter)
    # As lxc-attach: the same streams, a process of its own, and (as PVE 8 has it) the node's environment under the
    # container's. What is to run follows NODE pct exec VMID --.
    cd "${fields[1]}" || exit 255
    for assignment in "${fields[@]:2}"; do export "${assignment?}"; done
    "${@:6}"
    exit
    ;;
  *)
    printf 'the stand-in does not answer\n' >&2
    exit 255
    ;;
esac

#!/usr/bin/env bash
# What a worker (one host of a slice) does; tpu.sh copies this file to
# ~/coltran_run of every worker and calls it there.
#
#   worker.sh install [BUCKET]          source.tar.gz; the bucket at /bucket
#   worker.sh start RESTARTS ARGS...    starts `coltran train ARGS...`
#   worker.sh status                    prints one line, see below
#   worker.sh stop SECONDS              saves and stops; kills after that time
#   worker.sh logs LINES [follow]
#
# In ~/coltran_run: source.tar.gz, unpacked (its files), secrets.env (mode 600),
# log, command, and of the last run: pid, restarts, stopping (if `stop` came),
# code (of its exit).
set -euo pipefail
here=$HOME/coltran_run
repo=$HOME/coltran_jax
# coltran train: "saved; start me again"; "another process is gone, start all
# again", which jax itself says by SIGABRT.
readonly RESUME=42 AGAIN=75 ABORTED=134

say() {
  printf 'worker %s: %s\n' "$(hostname)" "$*"
}

fail() {
  say "$@" >&2
  exit 1
}

running() { # The loop and what it starts hold the lock while they live.
  ! flock --nonblock "$here/lock" true
}

install() {
  ! running || fail 'training runs here; stop it first'
  mkdir -p "$repo"
  # Only what an earlier installation unpacked: runs may lie there, too, and with
  # the environment installing again takes seconds.
  [ ! -e "$here/unpacked" ] ||
    (cd "$repo" && xargs -d '\n' rm -f -- <"$here/unpacked")
  tar -tzf "$here/source.tar.gz" | sed '/\/$/d' >"$here/unpacked"
  tar -xzf "$here/source.tar.gz" -C "$repo"
  get_python
  sh "$repo/launch/install.sh" '[tpu]' >/dev/null
  [ -z "${1:-}" ] || mount_bucket "$1"
  rm -f "$here"/{command,code}
  say 'installed'
}

get_python() { # The TPU images have 3.10.
  local python
  export PATH=$HOME/.local/bin:$PATH
  for python in python3.11 python3.12 python3.13; do
    ! command -v "$python" >/dev/null || return 0
  done
  python3 -m pip install --quiet --user 'uv>=0.8'
  uv python install 3.12 # As ~/.local/bin/python3.12.
}

mount_bucket() {
  ! mountpoint -q /bucket || return 0
  if ! command -v gcsfuse >/dev/null; then
    local key=/usr/share/keyrings/cloud.google.gpg.asc
    local url=https://packages.cloud.google.com/apt
    curl -fsSL "$url/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
    echo "deb [signed-by=$key] $url gcsfuse-$(lsb_release -cs) main" |
      sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
    sudo apt-get -qq update
    sudo apt-get -qq install -y gcsfuse fuse >/dev/null
  fi
  sudo mkdir -p /bucket
  sudo chown "$(id -u):$(id -g)" /bucket
  # No metadata cache: hosts wait for each other's files in a checkpoint.
  gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 \
    --rename-dir-limit=100000 "$1" /bucket
}

start() {
  local wanted
  wanted=$(printf '%q ' "${@:2}")
  if running; then
    [ "$(cat "$here/command")" = "$wanted" ] ||
      fail 'another run is under way; stop it first'
    say 'running already'
    return
  fi
  [ -x "$repo/.venv/bin/coltran" ] || fail 'not installed; run setup first'
  rm -f "$here"/{code,stopping,restarts,pid}
  printf '%s' "$wanted" >"$here/command"
  setsid nohup bash "$here/worker.sh" loop "$@" \
    >>"$here/log" 2>&1 </dev/null &
  for _ in {1..100}; do
    [ ! -e "$here/pid" ] || { say 'started; ssh may go' && return; }
    sleep 0.1
  done
  fail 'did not start'
}

loop() { # RESTARTS ARGS...
  local restarts=0 limit=$1 code signals=0 before child=
  shift
  exec 9>"$here/lock"
  flock --nonblock 9 || exit 1
  if [ -e "$here/secrets.env" ]; then
    set -a
    # shellcheck source=/dev/null
    . "$here/secrets.env"
    set +a
  fi
  cd "$repo"
  trap 'signals=$((signals + 1)); [ -z "$child" ] || kill -TERM "$child" || :' \
    TERM
  echo $$ >"$here/pid"
  while :; do
    say "$(date -u +%FT%TZ) coltran train$(printf ' %q' "$@")"
    .venv/bin/coltran train "$@" &
    child=$!
    # A signal to this shell ends `wait`, not the training: it has to save.
    while :; do
      before=$signals code=0
      wait "$child" || code=$?
      [ "$signals" != "$before" ] || break
    done
    child=
    say "$(date -u +%FT%TZ) exit code $code"
    [ "$code" = "$RESUME" ] || break
    [ "$restarts" -lt "$limit" ] || break
    restarts=$((restarts + 1))
    echo "$restarts" >"$here/restarts"
    sleep "${COLTRAN_RESTART_PAUSE:-10}"
    [ "$signals" = 0 ] || break
  done
  # Who shuts the machine down leaves no code: the run shall go on.
  [ "$signals" = 0 ] || [ -e "$here/stopping" ] || exit 1
  echo "$code" >"$here/code"
}

status() {
  local code
  if running; then
    say "running; restarts: $(cat "$here/restarts" 2>/dev/null || echo 0)"
  elif [ ! -e "$here/command" ]; then
    say 'idle'
  elif [ ! -e "$here/code" ]; then
    say 'died' # Shut down, or killed.
  else
    code=$(cat "$here/code")
    if [ "$code" = 0 ]; then
      say 'finished'
    elif [ -e "$here/stopping" ]; then
      say "stopped; exit code $code"
    elif [ "$code" = $AGAIN ] || [ "$code" = $ABORTED ]; then
      say "aborted; exit code $code"
    elif [ "$code" -gt 128 ]; then
      say "killed; signal $((code - 128))"
    else
      say "failed; exit code $code"
    fi
  fi
}

stop() { # SECONDS
  local end=$((SECONDS + $1)) pid
  if running; then
    touch "$here/stopping"
    pid=$(cat "$here/pid")
    # Without the loop, its whole group: the training itself.
    kill -TERM "$pid" 2>/dev/null || kill -TERM -- "-$pid" || :
    while running && [ "$SECONDS" -lt "$end" ]; do sleep 0.2; done
    if running; then
      say "did not stop within $1 s; killing it"
      kill -KILL -- "-$pid" || :
      while running; do sleep 0.1; done
    fi
  fi
  status
}

logs() { # LINES [follow]
  exec tail -n "$1" ${2:+-F} "$here/log"
}

main() {
  local command=$1
  shift
  mkdir -p "$here"
  chmod 700 "$here"
  case $command in
    install) install "$@" ;;
    start) start "$@" ;;
    loop) loop "$@" ;;
    status) status ;;
    stop) stop "$@" ;;
    logs) logs "$@" ;;
    *) fail "unknown: $command" ;;
  esac
}

# In braces: read to its end before it runs, for tpu.sh may write it anew.
{
  main "$@"
  exit
}

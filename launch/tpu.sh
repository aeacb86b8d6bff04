#!/usr/bin/env bash
# Trains on a Cloud TPU slice (v2 to v6e) by queued resources.
#
#   launch/tpu.sh [OPTIONS] up               asks for the slice, waits for it
#   launch/tpu.sh [OPTIONS] setup            copies the commit, installs
#   launch/tpu.sh [OPTIONS] run ARGS...      starts `coltran train ARGS...`
#   launch/tpu.sh [OPTIONS] watch ARGS...    all three, and again when preempted
#   launch/tpu.sh [OPTIONS] status
#   launch/tpu.sh [OPTIONS] logs [-f] [LINES]   of worker 0
#   launch/tpu.sh [OPTIONS] stop             saves a checkpoint on all workers
#   launch/tpu.sh [OPTIONS] down             deletes the slice
#
# All may be given again: what is done is left alone. Every gcloud command is
# printed. Options, each also a variable of the environment or a line NAME=value
# of launch/tpu.env (or of $TPU_ENV); the first found counts:
#
#   --name     TPU_NAME      of the slice (coltran)
#   --zone     TPU_ZONE      such as us-west4-a
#   --project  TPU_PROJECT   (gcloud's own)
#   --type     TPU_TYPE      such as v5litepod-16, v4-32, v6e-16
#   --spot     TPU_SPOT=1    cheaper; may be taken away at any moment
#   --dry-run  TPU_DRY_RUN=1 print the gcloud commands only
#              TPU_RUNTIME   image of the workers (by TPU_TYPE)
#              TPU_VALID_FOR how long to queue, such as 12h (no limit)
#              TPU_BUCKET    Cloud Storage bucket, mounted at /bucket
#              TPU_SECRETS   names of variables that the training shall see,
#                            such as HF_TOKEN; they go in a file of mode 600
#              TPU_RESTARTS  after exit code 42, on the workers (50)
#              TPU_RECOVERIES  of `watch`: new slices and new starts (50)
#              TPU_POLL      seconds between two looks (60)
#              TPU_STOP_SECONDS  for the last checkpoint, then it kills (600)
#
# Exit codes: 0 fine, 1 failed, 2 usage, 42 `watch` saw that it was stopped,
# 69 the slice cannot be looked at, 75 `up`: the request ended without a slice.
set -euo pipefail
readonly SELF=${BASH_SOURCE[0]}
ROOT=$(cd "$(dirname "$SELF")/.." && pwd)
readonly ROOT WORKER='bash coltran_run/worker.sh'
readonly USAGE=2 STOPPED=42 UNSEEN=69 ENDED=75
readonly LOST=5 # A worker that does not answer so often in a row is lost.

say() { printf 'tpu.sh: %s\n' "$*" >&2; }

fail() { # CODE MESSAGE...
  say "${@:2}"
  exit "$1"
}

show() { # Prints a command as a shell would read it.
  printf '+%s\n' "$(printf ' %q' "$@")" >&2
}

call() {
  show "$@"
  [ -n "$TPU_DRY_RUN" ] || "$@"
}

quote() { # Prints arguments for the shell of a worker, whichever it is.
  local argument
  for argument; do
    printf " '%s'" "${argument//\'/\'\\\'\'}"
  done
}

on_workers() { # WHICH COMMAND
  call gcloud compute tpus tpu-vm ssh "$TPU_NAME" "${WHERE[@]}" \
    --worker="$1" --command="$2"
}

look() { # Sets STATE, of the queued resource; ABSENT if there is none.
  local output
  STATE=ABSENT
  show "${DESCRIBE[@]}" --format='value(state.state)'
  [ -z "$TPU_DRY_RUN" ] || return 0
  if output=$("${DESCRIBE[@]}" --format='value(state.state)' 2>&1); then
    STATE=${output##*$'\n'} # gcloud may warn first.
  elif [[ $output != *NOT_FOUND* ]]; then
    fail $UNSEEN "cannot look at $TPU_NAME: $output"
  fi
  say "$TPU_NAME is $STATE"
}

up() {
  local asked=''
  while :; do
    look
    case $STATE in
      ACTIVE) return ;;
      ABSENT)
        ask
        asked=1
        [ -z "$TPU_DRY_RUN" ] || return 0
        ;;
      SUSPENDED | FAILED)
        [ -z "$asked" ] || fail $ENDED "the request ended as $STATE:" \
          "$("${DESCRIBE[@]}" --format='value(state)' 2>&1)"
        down
        ;;
      *) sleep "$TPU_POLL" ;; # Waiting, provisioning, suspending, deleting.
    esac
  done
}

ask() {
  local image flags
  [ -n "$TPU_TYPE" ] || fail $USAGE 'which slice? give --type'
  case $TPU_TYPE in
    v6e-*) image=v2-alpha-tpuv6e ;;
    v5p-*) image=v2-alpha-tpuv5 ;;
    v5litepod-*) image=v2-alpha-tpuv5-lite ;;
    v[234]-*) image=tpu-ubuntu2204-base ;;
    *) image=$TPU_RUNTIME ;;
  esac
  [ -n "$image" ] || fail $USAGE "which image for $TPU_TYPE? set TPU_RUNTIME"
  flags=(--node-id="$TPU_NAME" --accelerator-type="$TPU_TYPE"
    --runtime-version="${TPU_RUNTIME:-$image}")
  [ -z "$TPU_SPOT" ] || flags+=(--spot)
  [ -z "$TPU_VALID_FOR" ] || flags+=(--valid-until-duration="$TPU_VALID_FOR")
  call gcloud compute tpus queued-resources create "$TPU_NAME" "${WHERE[@]}" \
    "${flags[@]}" || fail 1 'the request was refused, see above; quota is per' \
    'zone, type and spot or not (console: IAM & Admin, Quotas)'
}

setup() {
  local folder changed name
  changed=$(git -C "$ROOT" status --porcelain)
  [ -z "$changed" ] || say 'not committed, so left out:'$'\n'"$changed"
  folder=$(mktemp -d) # Mode 700.
  # shellcheck disable=SC2064 # The folder of now.
  trap "rm -rf $(printf '%q' "$folder")" EXIT
  git -C "$ROOT" archive --format=tar.gz -o "$folder/source.tar.gz" \
    "${TPU_COMMIT:-HEAD}" -- . ':!tests' ':!launch/photos' ':!launch/*.jpg'
  cp "$ROOT/launch/worker.sh" "$folder"
  (umask 077 && : >"$folder/secrets.env")
  for name in $TPU_SECRETS; do
    [ -n "${!name+x}" ] || fail $USAGE "TPU_SECRETS: $name is not set"
    printf '%s=%q\n' "$name" "${!name}" >>"$folder/secrets.env"
  done
  on_workers all 'umask 77; mkdir -p coltran_run; rm -f coltran_run/secrets.env'
  call gcloud compute tpus tpu-vm scp "$folder/source.tar.gz" \
    "$folder/worker.sh" "$folder/secrets.env" "$TPU_NAME:coltran_run/" \
    "${WHERE[@]}" --worker=all
  on_workers all "$WORKER install$(quote "$TPU_BUCKET")"
}

check() { # ARGS of `coltran train`
  local argument
  [ $# -gt 0 ] || fail $USAGE 'give the arguments of coltran train'
  for argument; do
    case $argument in
      gs://* | *=gs://*)
        fail $USAGE "$argument: coltran knows no gs:// paths; set TPU_BUCKET" \
          'and write /bucket/...'
        ;;
    esac
  done
}

run() {
  check "$@"
  on_workers all "$WORKER start$(quote "$TPU_RESTARTS" "$@")"
}

status() {
  look
  [ "$STATE" = ACTIVE ] || [ -n "$TPU_DRY_RUN" ] || return 0
  on_workers all "if [ -f coltran_run/worker.sh ]; then $WORKER status
    else echo 'worker new: idle'; fi"
}

logs() {
  local follow=''
  [ "${1:-}" != -f ] || { follow=' follow' && shift; }
  on_workers 0 "$WORKER logs$(quote "${1:-100}")$follow"
}

stop() { on_workers all "$WORKER stop$(quote "$TPU_STOP_SECONDS")"; }

down() {
  look
  [ "$STATE" != ABSENT ] || [ -n "$TPU_DRY_RUN" ] || return 0
  call gcloud compute tpus queued-resources delete "$TPU_NAME" "${WHERE[@]}" \
    --force --quiet
}

# Brings the run to where it shall be, look after look, until it ends. Each step
# is a process of its own, so that its failure is an exit code here.
watch() {
  local code lost=0 seen='' words
  check "$@"
  RECOVERIES=0
  export TPU_COMMIT=${TPU_COMMIT:-$(git -C "$ROOT" rev-parse HEAD)}
  if [ -n "$TPU_DRY_RUN" ]; then
    up && setup && run "$@" && status
    return
  fi
  for (( ; ; )); do
    code=0
    step up || code=$?
    if [ $code = 0 ]; then
      seen=1
      words=$(step status | tee /dev/stderr | words_of) || code=$?
      # Some did not answer. If none did, look at the cloud's own view: this
      # computer may be offline, and the run fine.
      if [ $code = 0 ] || { [ -z "$words" ] && ready; }; then
        lost=0
      elif ((++lost == LOST)); then
        lost=0
        recover 'a worker is lost, so a new slice'
        step down || :
        continue
      fi
      [ $code != 0 ] || act "$words" "$@"
    elif [ $code = $ENDED ]; then
      recover 'no slice'
    elif [ $code != $UNSEEN ] || [ -z "$seen" ]; then
      exit $code
    fi
    sleep "$TPU_POLL"
  done
}

step() { "$BASH" "$SELF" "$@"; }

words_of() { # Prints the different words that workers say, sorted.
  sed -n 's/^worker [^:]*: \([a-z]*\).*/\1/p' | sort -u | xargs
}

ready() {
  [ "$(gcloud compute tpus tpu-vm describe "$TPU_NAME" "${WHERE[@]}" \
    --format='value(state)')" = READY ]
}

act() { # WORDS ARGS...
  local code=0
  case " $1 " in
    *' died '* | *' killed '*) recover 'the run broke' ;; # Then others fail.
    *' failed '*)
      step stop || :
      fail 1 'the training failed: see logs'
      ;;
    *' aborted '*) recover 'the run broke' ;; # For another: none has failed.
    *' running '* | '  ') return ;; # Or taken away just now: look again.
    ' idle ') ;;
    ' finished ') say 'finished; down ends the costs' && exit ;;
    *) fail $STOPPED 'stopped; run or watch goes on' ;;
  esac
  step stop >/dev/null 2>&1 || : # What is left of it.
  { step setup && step run "${@:2}"; } || code=$?
  [ $code != $USAGE ] || exit $USAGE
  [ $code = 0 ] || recover 'the workers could not be started'
}

recover() { # MESSAGE
  RECOVERIES=$((RECOVERIES + 1))
  [ "$RECOVERIES" -le "$TPU_RECOVERIES" ] ||
    fail 1 "$1; gave up after $TPU_RECOVERIES recoveries"
  say "$1; recovery $RECOVERIES of at most $TPU_RECOVERIES"
}

configure() { # Sets what is not set: from the file, then to defaults.
  local file=${TPU_ENV:-$ROOT/launch/tpu.env} key value
  [ -z "${TPU_ENV:-}" ] || [ -e "$file" ] || fail $USAGE "$file is missing"
  [ ! -e "$file" ] || while IFS='=' read -r key value || [ -n "$key" ]; do
    case $key in
      '' | '#'*) ;;
      TPU_[A-Z]*) [ -n "${!key+x}" ] || export "$key=$value" ;;
      *) fail $USAGE "$file: not a setting: $key" ;;
    esac
  done <"$file"
  export TPU_NAME=${TPU_NAME:-coltran} TPU_ZONE=${TPU_ZONE:-}
  export TPU_PROJECT=${TPU_PROJECT:-} TPU_TYPE=${TPU_TYPE:-}
  export TPU_SPOT=${TPU_SPOT:-} TPU_DRY_RUN=${TPU_DRY_RUN:-}
  export TPU_RUNTIME=${TPU_RUNTIME:-} TPU_VALID_FOR=${TPU_VALID_FOR:-}
  export TPU_BUCKET=${TPU_BUCKET:-} TPU_SECRETS=${TPU_SECRETS:-}
  export TPU_RESTARTS=${TPU_RESTARTS:-50} TPU_POLL=${TPU_POLL:-60}
  export TPU_RECOVERIES=${TPU_RECOVERIES:-50}
  export TPU_STOP_SECONDS=${TPU_STOP_SECONDS:-600}
}

main() {
  while :; do
    case ${1:-} in
      --name | --zone | --project | --type)
        [ $# -gt 1 ] || fail $USAGE "$1 what?"
        case $1 in
          --name) export TPU_NAME=$2 ;;
          --zone) export TPU_ZONE=$2 ;;
          --project) export TPU_PROJECT=$2 ;;
          --type) export TPU_TYPE=$2 ;;
        esac
        shift
        ;;
      --spot) export TPU_SPOT=1 ;;
      --dry-run) export TPU_DRY_RUN=1 ;;
      up | setup | run | watch | status | logs | stop | down) break ;;
      *) sed -n '2,/^set -/s/^# \{0,1\}//p' "$SELF" >&2 && exit $USAGE ;;
    esac
    shift
  done
  configure
  [ -n "$TPU_ZONE" ] || fail $USAGE 'in which zone? give --zone'
  [[ $TPU_NAME != -* ]] || fail $USAGE "no name: $TPU_NAME"
  WHERE=(--zone="$TPU_ZONE")
  [ -z "$TPU_PROJECT" ] || WHERE+=(--project="$TPU_PROJECT")
  DESCRIBE=(gcloud compute tpus queued-resources describe "$TPU_NAME"
    "${WHERE[@]}")
  "$@"
}

main "$@"

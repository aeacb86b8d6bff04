#!/usr/bin/env bash
# Trains on a node pool of TPUs in Google Kubernetes Engine, as a JobSet.
#
#   launch/gke.sh show ARGS...   prints the manifest for `coltran train ARGS...`
#   launch/gke.sh run ARGS...    applies it
#   launch/gke.sh status
#   launch/gke.sh logs [-f]      of the first host
#   launch/gke.sh stop           saves a checkpoint on all hosts, deletes it
#
# In the cluster of kubectl's context, by variables of the environment:
#
#   GKE_NAME             of the JobSet (coltran)
#   GKE_IMAGE            built from launch/Dockerfile
#   GKE_BUCKET           Cloud Storage bucket, mounted at /bucket
#   GKE_ACCELERATOR      of the node pool (tpu-v5-lite-podslice)
#   GKE_TOPOLOGY         of the node pool (4x4)
#   GKE_CHIPS            of a host (4)
#   GKE_SERVICE_ACCOUNT  of Kubernetes, that may use the bucket (coltran)
#   GKE_RESTARTS         at most (50)
#   GKE_SECRETS          names of variables that the training shall see, such as
#                        HF_TOKEN; they go to a Secret by kubectl's stdin
set -euo pipefail
readonly SELF=${BASH_SOURCE[0]}
NAME=${GKE_NAME:-coltran}
PODS=jobset.sigs.k8s.io/jobset-name=$NAME

fail() {
  printf 'gke.sh: %s\n' "$*" >&2
  exit 2
}

json() { # Sets REPLY to a string in quotes, for JSON and YAML.
  REPLY=${1//\\/\\\\}
  REPLY=${REPLY//\"/\\\"}
  REPLY=${REPLY//$'\n'/\\n}
  REPLY=${REPLY//$'\t'/\\t}
  case $REPLY in *[[:cntrl:]]*) fail "a control character in $REPLY" ;; esac
  REPLY="\"$REPLY\""
}

fill() { # NAME TEXT: puts it into MANIFEST.
  MANIFEST=${MANIFEST//"\"@$1@\""/"$2"}
}

fill_string() { # NAME STRING
  json "$2"
  fill "$1" "$REPLY"
}

fill_number() { # NAME STRING
  case $2 in '' | *[!0-9]* | 0*) fail "GKE_$1: a number, not $2" ;; esac
  fill "$1" "$2"
}

manifest() { # ARGS of `coltran train`: sets MANIFEST.
  local argument args='["train"' topology=${GKE_TOPOLOGY:-4x4}
  [ $# -gt 0 ] || fail 'give the arguments of coltran train'
  [ -n "${GKE_IMAGE:-}" ] || fail 'which image? set GKE_IMAGE'
  [ -n "${GKE_BUCKET:-}" ] || fail 'which bucket? set GKE_BUCKET'
  case $topology in
    *[!0-9x]* | x* | *x | *xx*)
      fail "GKE_TOPOLOGY: such as 4x4, not $topology"
      ;;
  esac
  for argument; do
    case $argument in
      gs://* | *=gs://*)
        fail "$argument: coltran knows no gs:// paths; write /bucket/..."
        ;;
    esac
    json "${argument//\$/\$\$}" # Kubernetes replaces $(NAME); $$ is its $.
    args+=", $REPLY"
  done
  MANIFEST=$(cat "$(dirname "$SELF")/gke/train.yaml")
  fill_string NAME "$NAME"
  fill_string IMAGE "$GKE_IMAGE"
  fill_string BUCKET "$GKE_BUCKET"
  fill_string ACCELERATOR "${GKE_ACCELERATOR:-tpu-v5-lite-podslice}"
  fill_string TOPOLOGY "$topology"
  fill_string SERVICE_ACCOUNT "${GKE_SERVICE_ACCOUNT:-coltran}"
  fill_number RESTARTS "${GKE_RESTARTS:-50}"
  fill_number CHIPS "${GKE_CHIPS:-4}"
  fill_number HOSTS $((${topology//x/*} / ${GKE_CHIPS:-4}))
  fill ARGS "$args]" # Last: they may say "@NAME@".
}

secret() { # Adds to MANIFEST what GKE_SECRETS names.
  local name
  json "$NAME"
  MANIFEST+=$'\n---\napiVersion: v1\nkind: Secret'
  MANIFEST+=$'\nmetadata:\n  name: '$REPLY$'\nstringData:'
  for name in $GKE_SECRETS; do
    [ -n "${!name+x}" ] || fail "GKE_SECRETS: $name is not set"
    json "${!name}"
    MANIFEST+=$'\n  '"$name: $REPLY"
  done
}

apply() {
  manifest "$@"
  [ -z "${GKE_SECRETS:-}" ] || secret
  kubectl apply -f - <<<"$MANIFEST"
}

stop() {
  kubectl delete jobset "$NAME" --ignore-not-found --cascade=foreground
  kubectl delete secret "$NAME" --ignore-not-found
}

case ${1:-} in
  show) manifest "${@:2}" && printf '%s\n' "$MANIFEST" ;;
  run) apply "${@:2}" ;;
  status)
    kubectl get jobset "$NAME"
    kubectl get pods -l "$PODS" -o wide
    ;;
  logs)
    kubectl logs "${@:2}" --container=train --tail=100 \
      -l "$PODS,batch.kubernetes.io/job-completion-index=0"
    ;;
  stop) stop ;;
  *) sed -n '2,/^set -/s/^# \{0,1\}//p' "$SELF" >&2 && exit 2 ;;
esac

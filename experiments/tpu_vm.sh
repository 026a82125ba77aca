#!/usr/bin/env bash
# From nothing to results on a TPU VM or a slice of several hosts; see usage below.
set -euo pipefail

usage() {
  cat <<'TEXT'
experiments/tpu_vm.sh NAME --zone ZONE --type TYPE [options] -- COMMAND...

Request a TPU as a queued resource, wait for it, copy the last commit there, install it, run COMMAND
on every host, bring the results here, and delete the TPU. Whatever fails, it is deleted all the same.

    experiments/tpu_vm.sh ahl --zone us-west4-a --type v5litepod-16 --data ~/parts -- \
        ahl train data --workdir runs/parts --preset paper --subsets 8 --distributed
    experiments/tpu_vm.sh ahl --zone us-west4-a --type v5litepod-8 --results experiments/results -- \
        python -m experiments.table1_general --data elpv

COMMAND runs in the copy of the repository. A table script takes a slice of one host.

  --zone ZONE         such as us-west4-a
  --type TYPE         the slice, such as v5litepod-8
  --version VERSION   of the TPU's software (v2-alpha-tpuv5-lite, which is v5e's)
  --spot              a cheaper TPU that may be taken away
  --data FOLDER       copy this folder to every host, as "data"
  --results PATH      bring this file or folder from the first host (runs); may be given repeatedly;
                      "" where COMMAND writes to a bucket
  --to FOLDER         where results go (tpu-NAME); must not exist
  --keep              do not delete the TPU
  --dry-run           print the commands alone
TEXT
}

refuse() {
  echo "tpu_vm.sh: $1" >&2
  exit 2
}

name='' zone='' type='' version=v2-alpha-tpuv5-lite data='' to='' spot=() results=()
keep=false dry=false
while (($#)); do
  case $1 in
    --zone | --type | --version | --data | --results | --to)
      (($# > 1)) || refuse "$1 needs a value; see --help"
      case $1 in
        --results) results+=("$2") ;;
        *) printf -v "${1#--}" %s "$2" ;;
      esac
      shift
      ;;
    --spot) spot=(--spot) ;;
    --keep) keep=true ;;
    --dry-run) dry=true ;;
    --help) usage && exit ;;
    --) shift && break ;;
    -*) refuse "there is no option $1; see --help" ;;
    *)
      [[ -z $name ]] || refuse "$1 follows the name $name; write -- before the command"
      name=$1
      ;;
  esac
  shift
done
[[ $name && $zone && $type ]] || refuse "NAME, --zone and --type are needed; see --help"
(($#)) || refuse "there is no command; write it after --"
((${#results[@]})) || results=(runs)
to=${to:-tpu-$name}
[[ ! -e $to ]] || refuse "$to exists; move it away, or choose another folder by --to"
[[ -z $data || -d $data ]] || refuse "--data $data is no folder"

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
tree=$(mktemp --suffix=.tar.gz)
doing='' created=false

# Every command is printed as one would type it.
run() {
  printf '%s\n' "+$(printf ' %q' "$@")" >&2
  "$dry" || "$@"
}

step() {
  doing=$1
  echo "== $doing" >&2
  run "${@:2}"
}

queue() { # CREATE-OR-DELETE ARGUMENTS...
  step "$1 the TPU" gcloud compute tpus queued-resources "$1" "$name" --zone="$zone" --quiet "${@:2}"
}

ssh_all() { # WHAT-FOR COMMAND
  step "$1" gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --quiet --worker=all --command="$2"
}

copy() { # WHAT-FOR WORKER FROM TO
  step "$1" gcloud compute tpus tpu-vm scp --recurse --zone="$zone" --quiet --worker="$2" "$3" "$4"
}

leave() {
  local code=$?
  trap - EXIT
  rm -f "$tree"
  ((code == 0)) || echo "tpu_vm.sh: stopped at: $doing" >&2
  if "$created" && "$keep"; then
    echo "tpu_vm.sh: $name is kept, and costs; delete it by: gcloud compute tpus queued-resources" \
      "delete $name --zone=$zone --force" >&2
  elif "$created" && ! queue delete --force; then
    echo "tpu_vm.sh: $name could not be deleted, and costs; delete it by hand" >&2
    ((code)) || code=1
  fi
  exit "$code"
}
trap leave EXIT

# Should it not be created, one of that name may be somebody's.
queue create --node-id="$name" --accelerator-type="$type" --runtime-version="$version" "${spot[@]}"
created=true

doing="wait for the TPU"
state=''
until [[ $state == ACTIVE ]]; do
  state=$(run gcloud compute tpus queued-resources describe "$name" --zone="$zone" \
    --format='value(state.state)')
  [[ $state != @(FAILED|SUSPENDING|SUSPENDED) ]] || exit 1
  ! "$dry" || break
  [[ $state == ACTIVE ]] || sleep "${TPU_VM_POLL:-30}"
done

step "pack the last commit" git -C "$root" archive --prefix=ahl_jax/ --output="$tree" HEAD
copy "copy the repository" all "$tree" "$name:ahl_jax.tar.gz"
# The image's Python may be older than ours, and uv brings one. Newer images refuse pip otherwise.
ssh_all "install" "tar -xzf ahl_jax.tar.gz && cd ahl_jax && export PIP_BREAK_SYSTEM_PACKAGES=1 \
&& python3 -m pip install --quiet --user uv && python3 -m uv venv --python 3.12 --clear \
&& python3 -m uv pip install --quiet -e '.[tpu]'"
[[ -z $data ]] || copy "copy the data" all "$data" "$name:ahl_jax/data"
printf -v command '%q ' "$@"
code=0
ssh_all "run" "cd ahl_jax && . .venv/bin/activate && $command" || code=$?
ran=$doing

# Of a command that failed too, as much as there is.
run mkdir -p "$to"
for path in "${results[@]}"; do
  if [[ $path ]] && ! copy "fetch $path" 0 "$name:ahl_jax/$path" "$to/"; then
    # Results that cost hours are worth more than the minutes until somebody looks.
    if ((code == 0)); then keep=true && exit 1; fi
  fi
done
doing=$ran
((code == 0)) || exit "$code"
"$dry" || echo "the results are in $to" >&2

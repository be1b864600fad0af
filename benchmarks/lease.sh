#!/usr/bin/env bash
# All that a quarter of an hour on one GPU can show, in order of worth, each part with a time of its own:
#
#   benchmarks/lease.sh                     # on a machine with a GPU, from the checkout's root
#   benchmarks/lease.sh --device cpu        # rehearses every part, in tiny sizes, where there is none
#   benchmarks/lease.sh --parts "cached cached-tests" --seconds 300    # some of them, where one command may not take so long
#
#   --out FOLDER    gets lease.jsonl (a line per figure, as soon as it is there), lease.log and lease.md (the table)
#   --seconds N     all parts together; what does not fit is left out, and the table says so
#   --parts WORDS   some of the parts, in this order
#   PYTHON          the interpreter (python3), with torch, torchrec, fbgemm-gpu, pytest and what pyproject.toml names
#
# A part that fails, hangs or comes too late costs its own figures and no other's.
set -u
cd "$(dirname "$0")/.." || exit 1

device=cuda out=runs/lease seconds=780 python=${PYTHON:-python3}
parts="tests hardware rates cached cached-tests"
while (($#)); do
  case $1 in
    --device) device=$2 ;;
    --out) out=$2 ;;
    --seconds) seconds=$2 ;;
    --parts) parts=$2 ;;
    *) echo "unknown: $1; the head of $0 says what there is" >&2; exit 2 ;;
  esac
  shift 2 || exit 2
done
mkdir -p "$out"
lines=$out/lease.jsonl log=$out/lease.log
ends=$((SECONDS + seconds))
export PYTHONUNBUFFERED=1

# A checkout is the package livetrain: where it is not installed, a link of that name makes it importable.
links=
if ! "$python" -c 'import livetrain' 2>/dev/null; then
  links=$(mktemp -d)
  ln -s "$PWD" "$links/livetrain"
  export PYTHONPATH=$links${PYTHONPATH:+:$PYTHONPATH}
fi

finish() {
  "$python" benchmarks/lease.py table "$lines" | tee "$out/lease.md"
  if [[ $links ]]; then rm -r "$links"; fi
}
trap finish EXIT

part() { # name, most seconds, command
  local name=$1 most=$(($2 * patience)) left=$((ends - SECONDS)) began=$SECONDS code
  shift 2
  if [[ " $parts " != *" $name "* ]]; then return; fi
  if ((left < most)); then most=$left; fi
  if ((most < 1)); then code=-1; else
    echo "== $name, up to $most s: $*" | tee -a "$log"
    PART=$name timeout --kill-after=5 "$most" "$@" 2>&1 | tee -a "$log"
    code=${PIPESTATUS[0]}
  fi
  echo "{\"part\": \"$name\", \"what\": \"end\", \"code\": $code, \"seconds\": $((SECONDS - began))}" >>"$lines"
}

lease() { part "$1" "$2" "$python" benchmarks/lease.py "$1" --device "$device" --json "$lines"; }

rates() { # name, most seconds, recipe, more
  part "$1" "$2" "$python" benchmarks/device.py "configs/recipes/$3.yaml" "${@:4}" "${sizes[@]}" --device "$device" --json "$lines"
}

if [[ $device == cpu ]]; then
  large=(--batches 192 768 --precisions float32 bfloat16) small=(--batches 192 --precisions float32)
  sizes=(--rows 4096 --ids 1000 --steps 2 --held 2) rows=2000 patience=10 # a rehearsal's machine has others to serve
else
  large=(--batches 98304 12288 1536 --precisions bfloat16 tf32 float32) small=(--batches 98304 4224 --precisions bfloat16)
  sizes=(--rows 1000000 --ids 5000000 --steps 20 --held 8) rows=5000000 patience=1
fi

lease tests 150
lease hardware 30
rates rates 150 din_ml1m "tables.movie.rows=$rows" "${large[@]}"
rates cached 40 din_ml1m tables.movie.memory=host tables.movie.rows=200000 "${small[@]}"
lease cached-tests 60

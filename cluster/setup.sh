#!/usr/bin/env bash
# Makes .venv with everything that livetrain needs, from a bare Python and pip. The one place of the torch pins, but for
# the extra `cuda` of pyproject.toml, which has the default ones again (a test compares them).
#
#   ACCELERATOR=cpu|cuda   which fbgemm wheel (default cpu)
#   TRIO=2.14|2.13|...     torch release; torchrec and fbgemm of the same date go with it (default 2.13; see below)
#   PYTHON=python3         the interpreter that .venv is made from
#   LOCKED=0|1             1 installs what cluster/requirements.lock pins, by hash, but for the torch release and what
#                          it brings for the accelerator, whose wheels depend on the machine (default 0: the ranges)
#
# A second run does nothing. A set-up that was interrupted, or is for another accelerator, starts over.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

ACCELERATOR=${ACCELERATOR:-cpu} TRIO=${TRIO:-2.13} PYTHON=${PYTHON:-python3} LOCKED=${LOCKED:-0}
VENV=.venv

fail() { echo "setup: $*" >&2; exit 2; }
step() { printf 'setup: %s (%d s)\n' "$1" "$SECONDS"; }
install() { "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-input "$@"; }

case $TRIO in
  2.14) TORCH=2.14.0 REC=1.9.0 GEMM=1.9.0 ;;
  2.13) TORCH=2.13.0 REC=1.8.0 GEMM=1.8.0 ;;
  2.12) TORCH=2.12.0 REC=1.7.0 GEMM=1.7.0 ;;
  2.11) TORCH=2.11.0 REC=1.6.1 GEMM=1.6.0 ;;
  *) fail "TRIO is '$TRIO'; use 2.14, 2.13, 2.12 or 2.11" ;;
esac
# Both fbgemm wheels unpack into one folder, so an environment only ever sees one of them.
case $ACCELERATOR in
  cpu) FBGEMM=fbgemm-gpu-cpu==$GEMM ;;
  cuda) FBGEMM=fbgemm-gpu==$GEMM ;;
  *) fail "ACCELERATOR is '$ACCELERATOR'; use cpu or cuda" ;;
esac

case $LOCKED in
  0) PINS= ;;
  1) PINS=cluster/requirements.lock ;;
  *) fail "LOCKED is '$LOCKED'; use 0 or 1" ;;
esac

command -v "$PYTHON" >/dev/null || fail "there is no '$PYTHON' on the PATH; install Python 3.11 or newer, or name one with PYTHON=..."
found=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2]); sys.exit(sys.version_info < (3, 11))') ||
  fail "livetrain needs Python 3.11 or newer, and '$PYTHON' is ${found:-broken}; name another with PYTHON=..."

# What only a fresh environment can change (its scripts hold its path), and what an install into it can.
kind="$ACCELERATOR torch-$TORCH python-$found $PWD"
stamp="$kind
$(cat pyproject.toml cluster/setup.sh $PINS | cksum)"
if [ -x $VENV/bin/python ] && [ "$(cat $VENV/ready 2>/dev/null)" = "$stamp" ]; then
  exit 0
fi
if [ -e $VENV/unfinished ] || { [ -e $VENV/ready ] && [ "$(head -n 1 $VENV/ready)" != "$kind" ]; }; then
  rm -rf $VENV
fi
rm -f $VENV/ready
mkdir -p $VENV
touch $VENV/unfinished
step "making $VENV with Python $found for $ACCELERATOR"
"$PYTHON" -m venv $VENV || fail "'$PYTHON -m venv' failed; install Python's venv module (on Debian: python3-venv)"

if [ -n "$PINS" ]; then
  step "installing what $PINS pins"
  install --require-hashes --no-deps --requirement $PINS
fi
step "installing torch $TORCH and ${FBGEMM/==/ }; the first time this downloads for some minutes"
install "torch==$TORCH" "$FBGEMM"
if [ -n "$PINS" ]; then
  step "installing livetrain"
  install --no-deps --no-build-isolation --editable .
else
  step "installing livetrain, Ray and the tools for tests"
  install "torch==$TORCH" "$FBGEMM" --editable ".[test]"
fi
step "installing torchrec $REC"
# Its wheel asks for the CUDA fbgemm; the rest of what it asks for is in pyproject.toml.
install --no-deps "torchrec==$REC"

# The repository's root is the package: a link of its name, which type checkers and doctest follow too.
mkdir -p "$VENV/lib/python$found/site-packages"
ln -sfn "$PWD" "$VENV/lib/python$found/site-packages/livetrain"

rm $VENV/unfinished
echo "$stamp" >$VENV/ready
step "ready"

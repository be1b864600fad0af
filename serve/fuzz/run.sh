#!/bin/sh
# Fuzzes what reads requests and published files: serve/fuzz/run.sh PYTHON SECONDS, see `make serve-fuzz`.
#
# clang with libFuzzer, AddressSanitizer and UndefinedBehaviorSanitizer. What was found before is begun with: the corpora
# stay in serve/build-fuzz. An input that breaks something is written there, too, and ends this with a failure.
set -eu
python=$1 seconds=$2
cd "$(dirname "$0")/../.."
build=$PWD/serve/build-fuzz
torch=$("$python" -c "import torch; print(torch.__path__[0])")
mkdir -p "$build"
"$python" -m tests.serve.vectors "$build/seeds"
flags="-std=c++20 -O1 -g1 -fno-omit-frame-pointer -fno-sanitize-recover=undefined"
flags="$flags -isystem $torch/include -isystem $torch/include/torch/csrc/api/include"
for source in wire wire_check wire_people wire_signature fuzz/wire fuzz/json; do
    made=$build/$(echo $source | tr / _).o
    if [ -z "$(find serve -maxdepth 2 -name '*.h' -newer "$made" 2>&1)" ] && [ ! "serve/$source.cpp" -nt "$made" ]; then continue; fi
    clang++ $flags -fsanitize=fuzzer-no-link,address,undefined -c "serve/$source.cpp" -o "$made"
done
for each in wire json; do
    clang++ -fsanitize=fuzzer,address,undefined "$build"/wire*.o "$build/fuzz_$each.o" \
        -o "$build/fuzz_$each" -L"$torch/lib" -ltorch -ltorch_cpu -lc10 -Wl,-rpath,"$torch/lib"
    mkdir -p "$build/corpus/$each"
    echo "fuzzing: $each, $seconds s"
    if ! SIGNATURE=$PWD/tests/serve/vectors/signature.json "$build/fuzz_$each" -max_total_time="$seconds" -max_len=8192 \
        -timeout=20 -print_final_stats=1 -artifact_prefix="$build/" "$build/corpus/$each" "$build/seeds/$each" \
        >"$build/$each.log" 2>&1; then
        tail -40 "$build/$each.log"
        exit 1
    fi
    grep -E "DONE|stat::number_of_executed_units|stat::new_units_added" "$build/$each.log"
done

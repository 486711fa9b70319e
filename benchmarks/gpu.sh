#!/usr/bin/env bash
# Everything that only a GPU can show, in under ten minutes: tests marked `gpu`, then the benchmarks of step, merge and fine-tuning.
#
#   benchmarks/gpu.sh [OUT]          results in OUT (default build/gpu): gpu.csv, summary.md, one log and one CSV file per part
#   benchmarks/gpu.sh --dry [OUT]    the same in miniature on a CPU, to check the script itself
#
# Runs from the source tree, without the network. PYTHON chooses the interpreter (default python3). Each part has its own time limit, so a
# part that fails or hangs costs only itself; the script exits with 1 if any part failed.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.."
DRY=""
if [ "${1:-}" = "--dry" ]; then DRY=1; shift; fi
OUT=${1:-build/gpu}
PYTHON=${PYTHON:-python3}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} HF_HUB_OFFLINE=1 SMAT_NO_PLUGINS=1
mkdir -p "$OUT" || exit 2
[ -n "$DRY" ] && export OMP_NUM_THREADS=1

LIMITS=0
FAILED=0
echo "part,status,seconds,limit" > "$OUT/gpu.csv"

# part NAME LIMIT COMMAND...: run a command with a limit in seconds; add a line to gpu.csv.
part() {
    local name=$1 limit=$2 begin status
    shift 2
    LIMITS=$((LIMITS + limit))
    begin=$(date +%s)
    timeout --kill-after=10 "$limit" "$@" > "$OUT/$name.log" 2>&1
    case $? in
        0) status=ok ;;
        124 | 137) status=timeout ;;
        *) status=failed ;;
    esac
    [ "$status" = ok ] || FAILED=1
    echo "$name,$status,$(($(date +%s) - begin)),$limit" | tee -a "$OUT/gpu.csv"
}

DEVICE=$("$PYTHON" - <<'PY'
import platform
import torch

name = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})"
print(f"{name}, torch {torch.__version__}, Python {platform.python_version()}")
PY
) || { echo "gpu.sh: $PYTHON cannot import torch; set PYTHON" >&2; exit 2; }
echo "$DEVICE"
case "$DRY$DEVICE" in CPU*) echo "gpu.sh: no CUDA device; --dry runs in miniature on a CPU" >&2; exit 2 ;; esac

if [ -n "$DRY" ]; then
    part tests 60 "$PYTHON" -m pytest -p no:cacheprovider -m gpu -q -rs tests/adaptation tests/experts tests/data/test_augment.py
    part step 60 "$PYTHON" benchmarks/step.py --device cpu --experts 2 --repeat 1 --sides plain:fp32,fast:fp32 --csv "$OUT/step.csv"
    part merge 60 "$PYTHON" benchmarks/merge.py --device cpu --parameters 10000 --experts 2 --repeat 1 --csv "$OUT/merge.csv"
    part finetune 90 "$PYTHON" benchmarks/finetune.py --device cpu --width 16 --depth 2 --size 16 --ways 2 --shots 2 --queries 2 --experts 2 \
        --steps 2 --episodes 1 --sides plain,full,lora --csv "$OUT/finetune.csv"
else
    part tests 180 "$PYTHON" -m pytest -p no:cacheprovider -m gpu -q -rs tests
    part step 150 "$PYTHON" benchmarks/step.py --model vit_small_patch16_224 --device cuda --repeat 3 \
        --sides plain:fp32,fast:fp32,fast:tf32,fast:bf16,fast:bf16+compile --csv "$OUT/step.csv"
    part merge 60 "$PYTHON" benchmarks/merge.py --device cuda --parameters 22000000 --experts 8 --csv "$OUT/merge.csv"
    part finetune 150 "$PYTHON" benchmarks/finetune.py --device cuda --width 384 --depth 12 --size 128 --patch 16 --groups 2,4,8 \
        --sides plain,full,lora --csv "$OUT/finetune.csv"
fi

{
    echo "# Results on a GPU"
    echo
    echo "$(date -u +%Y-%m-%d), $DEVICE${DRY:+, dry run}, commit $(git rev-parse --short HEAD 2> /dev/null || echo unknown). Time limits add up to $LIMITS s."
    echo
    echo "| part | status | seconds |"
    echo "|---|---|---|"
    tail -n +2 "$OUT/gpu.csv" | while IFS=, read -r name status seconds _; do echo "| $name | $status | $seconds |"; done
    for name in tests step merge finetune; do
        echo
        echo "## $name"
        echo
        echo '```'
        tail -n 40 "$OUT/$name.log"
        echo '```'
    done
} > "$OUT/summary.md"
echo "$OUT/summary.md"
exit $FAILED

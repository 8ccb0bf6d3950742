#!/usr/bin/env bash
# torch 2.15.0 on x86: weights packed for a convolution of some size may be wrong for another, and nothing says so. A 1 x 1 convolution
# in 36 groups, packed for 28 pixels as a frozen graph packs it, is right for any number of pixels; but for some of them
# oneDNN wants another layout, and all weights are brought into it again in every call, by its reference code: a hundred
# times as long as the convolution. oneDNN's own log of what it ran tells (one thread, its instructions limited to AVX2).
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf -- "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check 'torch==2.15.0' >&2
cat >packed.py <<'PY'
import torch

torch.set_num_threads(1)
mkldnn, groups, width = torch.ops.mkldnn, 36, 512
weights = torch.randn(groups * width, width, 1, 1)
geometry = ([0, 0], [1, 1], [1, 1], groups)
packed = mkldnn._reorder_convolution_weight(weights, *geometry, [1, groups * width, 28, 1])
for num_pixels in range(4, 65, 4):
    image = torch.randn(1, num_pixels, 1, groups * width).permute(0, 3, 1, 2)
    for _ in range(2):
        print("call", num_pixels, flush=True)
        mkldnn._convolution_pointwise(image, packed, None, *geometry, "none", [], "")
PY
log="$(OMP_NUM_THREADS=1 ONEDNN_VERBOSE=1 ONEDNN_MAX_CPU_ISA=AVX2 venv/bin/python packed.py 2>/dev/null)"
# Sizes by how many of their two calls reorder weights.
found="$(awk -F'[ ,]' '/^call/ {size = $2; calls[size] += 0} size && /exec,cpu,reorder,simple:any/ {calls[size]++}
    END {for (size in calls) print size, calls[size]}' <<<"$log" | sort -n)"
again="$(awk '$2 == 2 {printf " %s", $1}' <<<"$found")"
kept="$(awk '$2 == 0 {printf " %s", $1}' <<<"$found")"
printf 'torch 2.15.0: packed for 28 pixels; weights reordered in every call for%s pixels; in none for%s\n' "$again" "$kept"
[[ -n $again && " $kept " == *" 28 "* ]] || {
    echo "changed: expected reorders in every call for some sizes, and none for 28 pixels" >&2
    exit 1
}

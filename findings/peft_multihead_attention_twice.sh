#!/usr/bin/env bash
# peft 0.21.2: a LoRA adapter on `nn.MultiheadAttention` adds what belongs to `out_proj` twice, in its forward and as it merges, where
# its own formula (alpha / r times B times A) and every other layer add it once. Merging the matrices by the formula gives
# another model than the one that was trained, so the weights have to be merged by the peft that trained them.
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf -- "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check 'torch==2.15.0' 'peft==0.21.2' >&2
cat >twice.py <<'PY'
import torch
from peft import LoraConfig, get_peft_model
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.attn(x, x, x)[0]


torch.manual_seed(0)
net = Net().eval()
before = net.attn.out_proj.weight.detach().clone()
model = get_peft_model(net, LoraConfig(r=2, lora_alpha=2, target_modules=["attn"])).eval()
with torch.no_grad():
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.copy_(torch.randn_like(parameter))
matrices = {name: parameter.detach().clone() for name, parameter in model.named_parameters() if "out_proj.lora_" in name}
down, up = (next(value for name, value in matrices.items() if f"lora_{part}" in name) for part in "AB")
x = torch.randn(1, 3, 8)
with torch.no_grad():
    output = model(x)
    merged = model.merge_and_unload()
    factor = ((merged.attn.out_proj.weight - before) / (up @ down)).mean()
    print(f"{factor:.2f} {(merged(x) - output).abs().max() < 1e-5}")
PY
found="$(venv/bin/python twice.py 2>/dev/null)"
printf 'peft 0.21.2: the change of out_proj over its matrices, and whether the merged model is the trained one: %s\n' "$found"
[[ $found == "2.00 True" ]] || {
    echo "changed: expected 2.00 True" >&2
    exit 1
}

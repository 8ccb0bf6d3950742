#!/usr/bin/env bash
# torch 2.15.0: `CrossEntropyLoss(weight=...)` is another function of the same labels once they are given as probabilities, as mixup
# gives them: for class indices the mean divides by the weights of the batch's items, for probabilities by the number of
# items. One-hot rows of the very same labels give 2.5 times the loss here, so that turning mixup on changes the step too.
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf -- "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check 'torch==2.15.0' >&2
cat >losses.py <<'PY'
import torch
from torch import nn

labels = torch.tensor([0, 0, 0, 1, 1, 2])
logits = torch.linspace(-1, 1, 18).reshape(6, 3).sin()
weights = torch.tensor([1.0, 2.0, 8.0])
one_hot = nn.functional.one_hot(labels, 3).float()
as_indices, as_rows = (nn.CrossEntropyLoss(weight=weights)(logits, target) for target in (labels, one_hot))
print(f"{as_rows / as_indices:.4f} {weights[labels].sum() / len(labels):.4f}")
PY
found="$(venv/bin/python losses.py 2>/dev/null)"
printf 'torch 2.15.0: loss of one-hot rows over the loss of indices, mean weight of the items: %s\n' "$found"
[[ $found == "2.5000 2.5000" ]] || {
    echo "changed: expected 2.5000 2.5000" >&2
    exit 1
}

#!/usr/bin/env bash
# transformers 5.24.0: a BERT layer returns its hidden states, where 4.57.3 returned a tuple that held them. Code that runs a model layer by
# layer and takes `layer(states)[0]`, as was right before, then takes the first text of the batch without an error: the
# layers accept what has a dimension less. Who must run with both asks whether it is a tuple, or cuts the model elsewhere.
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf -- "$folder"' EXIT
cd "$folder"
python3 -m venv venv
cat >layers.py <<'PY'
import torch
import transformers
from transformers import BertConfig, BertModel

torch.manual_seed(0)
config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
model = BertModel(config).eval()
tokens = torch.arange(12).reshape(3, 4) % 9
with torch.no_grad():
    expected = model(tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state
    returned = model.encoder.layer[0](model.embeddings(tokens))
first = returned[0]
is_all = first.shape == expected.shape and torch.allclose(first, expected, atol=1e-6)
print(transformers.__version__, type(returned).__name__, list(expected.shape), list(first.shape), is_all)
PY
found=""
for version in 4.57.3 5.24.0; do
    venv/bin/python -m pip install --quiet --disable-pip-version-check 'torch==2.15.0' "transformers==$version" >&2
    found+="$(venv/bin/python layers.py)"$'\n'
done
printf 'version, returned, shape of all states, shape of [0], the same:\n%s' "$found"
expected="4.57.3 tuple [3, 4, 8] [3, 4, 8] True
5.24.0 Tensor [3, 4, 8] [4, 8] False"
[[ $found == "$expected"$'\n' ]] || {
    printf 'expected:\n%s\n' "$expected" >&2
    exit 1
}

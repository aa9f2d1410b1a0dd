#!/usr/bin/env bash
# Every comparison of models that start at the right scale: results/matched/run.sh NAME [OPTION …].
# A second call goes on where the first one stopped; each run has one thread.  `NAME` is one of those in the list below.
set -euo pipefail

ALL="baseline preconditioned qk_norm spectral constant_gain preconditioned_power head_rmsnorm identity_init
spectral_published preconditioned_weights preconditioned_scaled spectral_polar preconditioned+spectral head_l2
head_rmsnorm_gain sigmoid_gate orthogonal_init conditioned_init qk_norm_temperature preconditioned+qk_norm
preconditioned_learned spectral_qk qk_clip=10"
OF_RECALL="baseline preconditioned preconditioned_power preconditioned_learned spectral spectral_qk conditioned_init
qk_norm qk_norm_temperature"
SEVEN="baseline preconditioned preconditioned_power constant_gain spectral qk_norm conditioned_init"
SIX="baseline preconditioned preconditioned_power spectral qk_norm conditioned_init"    # the columns of docs/answer.md
FIVE="baseline preconditioned qk_norm spectral conditioned_init"

compare() { # RECIPE VARIANTS OPTION …
  conditioned-attention compare "$1" --variants $2 --monitor-every 100 --no-cost --folder "runs/matched/$name" "${@:3}"
}
digits() { compare digits "$1" --epochs 12 "${@:2}"; }
dose() { digits "$SEVEN" --seeds 3 --tune 1e-3 2.5e-3 6e-3 "$@"; }                # gain against the scale of the start
vary() { digits "$FIVE" --seeds 5 --tune 1e-3 2.5e-3 6e-3 "$@"; }                 # what nobody had varied
regime() { digits "$1" --seeds 5 --tune 5e-4 1e-3 2.5e-3 6e-3 --tune-seeds 2 "${@:2}"; }

name=${1:?NAME of a comparison; see the list in $0}
shift
case $name in
digits) digits "$ALL" --seeds 10 --tune 2e-4 5e-4 1e-3 2.5e-3 6e-3 --tune-seeds 3 "$@" ;;
fashion) compare fashion_mnist "$ALL" --train-limit 10000 --patch-size 7 --hidden-size 64 --layers 4 --heads 4 --epochs 5 \
  --batch-size 64 --seeds 5 --tune 2e-4 5e-4 1e-3 2.5e-3 6e-3 --tune-seeds 3 "$@" ;;
bytes) compare next_byte "$SIX" --text wordnet --path /usr/share/wordnet --hidden-size 64 --layers 2 --heads 4 \
  --tokens 1000000 --batch-size 16 --eval-windows 256 --evaluate-every 0.01 --seeds 10 \
  --tune 2.5e-3 6e-3 1.5e-2 3e-2 --tune-seeds 2 "$@" ;;

# with the decay that is usual for SGD, where it is part of the gradient; and with that of AdamW, which is a hundredfold
sgd) digits "$FIVE" --optimizer sgd --weight-decay 5e-4 --seeds 10 --tune 3e-3 1e-2 3e-2 1e-1 3e-1 --tune-seeds 3 "$@" ;;
sgd-decay-0.05) digits "$FIVE" --optimizer sgd --seeds 10 --tune 1e-3 3e-3 1e-2 3e-2 1e-1 --tune-seeds 3 "$@" ;;
muon) digits "$FIVE" --optimizer muon --seeds 10 --tune 1e-3 3e-3 1e-2 3e-2 1e-1 --tune-seeds 3 "$@" ;;

init-*) dose --init "${name#init-}" "$@" ;;         # 0.01 0.02 0.04 0.0693 0.125 0.25
qk-*) dose --qk-scale "${name#qk-}" "$@" ;;         # 0.29 3.6: W_Q, W_K alone as if from 0.02 and 0.25
vo-*) dose --vo-scale "${name#vo-}" "$@" ;;         # the same of W_V and W_O

n-over-d-3.1) digits "$FIVE" --seeds 5 --tune 5e-4 1e-3 2.5e-3 --tune-seeds 2 --patch-size 1 --hidden-size 63 --heads 3 "$@" ;;   # 65 tokens, heads of 21
n-over-d-0.53) regime "$SEVEN" --heads 2 "$@" ;;                                           # 17 tokens, heads of 32
wide-heads) regime "$SEVEN" --hidden-size 128 --heads 2 "$@" ;;                           # heads of 64, as in a ViT-B
depth-4) regime "$SEVEN" --layers 4 "$@" ;;
depth-12) digits "$FIVE" --seeds 5 --tune 5e-4 1e-3 2.5e-3 --tune-seeds 2 --layers 12 "$@" ;;

post-norm) vary --norm post "$@" ;;
depth-scaled) vary --residual-scale depth "$@" ;;
no-decay) vary --weight-decay 0 "$@" ;;
decay-0.3) vary --weight-decay 0.3 "$@" ;;
no-warmup) vary --warmup 0 "$@" ;;
mean-pooling) vary --pooling mean "$@" ;;
batch-16) vary --batch-size 16 "$@" ;;
batch-16-tuned) vary --batch-size 16 --tune-seeds 3 "$@" ;;                      # one seed decides by an image or two

recall) compare recall "$OF_RECALL" --seeds 5 --tune 1e-3 2e-3 4e-3 --tune-seeds 2 "$@" ;;
in-context-regression) compare in_context_regression "$FIVE" --seeds 3 --tune 1.25e-4 2.5e-4 5e-4 1e-3 2e-3 "$@" ;;
burgers) compare burgers "$SEVEN head_rmsnorm" --points 32 --epochs 60 --seeds 3 --tune 5e-4 1e-3 2.5e-3 6e-3 --tune-seeds 2 "$@" ;;
*) echo "unknown comparison $name; see the list in $0" >&2 && exit 2 ;;
esac

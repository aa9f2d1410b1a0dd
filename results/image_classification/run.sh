#!/usr/bin/env bash
# Families scaled down, plainly and by DeiT's recipe: results/image_classification/run.sh FAMILY-RECIPE-DATA [OPTION …],
# such as swin-deit-emoji --workers 2.  A second call goes on where the first one stopped; each run has one thread.
#   FAMILY  vit vit_wide_heads swin xcit davit
#   RECIPE  plain deit
#   DATA    fashion, or emoji: EMOJI names the folder with the two packages, default node_modules
# 13 runs a variant, tuning included: core-hours of an epoch of Fashion-MNIST and of 20 of emoji, estimated from the time
# of a step: vit 1.9 and 1.5, vit_wide_heads 0.6 and 0.6, swin 2.4 and 1.9, xcit 1.9 and 1.5, davit 1.8 and 1.5.
set -euo pipefail

EVERY="baseline preconditioned spectral preconditioned+spectral"

name=${1:?NAME of a comparison; see the list in $0}
shift
IFS=- read -r family recipe data <<< "$name"

# where queries and keys of XCiT (which norms them itself) and DaViT pass, no hook sees them: no qk_norm
case $family in
vit | vit_wide_heads | swin) variants="$EVERY qk_norm conditioned_init" ;;
xcit | davit) variants="$EVERY conditioned_init" ;;
*) echo "unknown family $family; see the list in $0" >&2 && exit 2 ;;
esac
case $recipe in
plain) options="" ;;
deit) options="--deit" ;;
*) echo "unknown recipe $recipe; see the list in $0" >&2 && exit 2 ;;
esac
case $data in
fashion) start=(fashion_mnist --epochs 1 --evaluate-every 0.25 --monitor-every 0.5) ;;
emoji) start=(emoji --data-dir "${EMOJI:-node_modules}" --epochs 20 --evaluate-every 1 --monitor-every 4) ;;
*) echo "unknown data $data; see the list in $0" >&2 && exit 2 ;;
esac

conditioned-attention compare "${start[@]}" --family "$family" $options --variants $variants --seeds 5 \
  --tune 1e-3 2.5e-3 6e-3 1.5e-2 --tune-seeds 2 --no-cost --folder "runs/image_classification/$name" "$@"

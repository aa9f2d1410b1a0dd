#!/usr/bin/env bash
# Families scaled down, plainly and by DeiT's recipe: results/image_classification/run.sh FAMILY-RECIPE-DATA [OPTION …],
# such as swin-deit-emoji --workers 2.  A second call goes on where the first one stopped; each run has one thread.
#   FAMILY  vit vit_wide_heads swin xcit davit
#   RECIPE  plain deit
#   DATA    fashion, or emoji: EMOJI names the folder with the two packages, default node_modules
# About 14 runs a variant, tuning included.  Core-hours of 2 epochs of Fashion-MNIST and of 40 of emoji, plain (deit: a
# tenth more, vit_wide_heads a half), by the time of a step: vit 4.1 and 3.2, vit_wide_heads 1.2 and 1.2, swin 5.2 and
# 4.0, xcit 4.0 and 3.1, davit 3.9 and 3.1.
set -euo pipefail

EVERY="baseline preconditioned spectral preconditioned+spectral"

name=$1
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
fashion) start=(fashion_mnist --epochs 2 --evaluate-every 0.25 --monitor-every 0.5) ;;
emoji) start=(emoji --data-dir "${EMOJI:-node_modules}" --epochs 40 --evaluate-every 2 --monitor-every 4) ;;
*) echo "unknown data $data; see the list in $0" >&2 && exit 2 ;;
esac

conditioned-attention compare "${start[@]}" --family "$family" $options --variants $variants --seeds 5 \
  --tune 5e-4 1e-3 2.5e-3 6e-3 1.5e-2 --tune-seeds 2 --no-cost --folder "runs/image_classification/$name" "$@"

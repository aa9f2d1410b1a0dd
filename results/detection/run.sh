#!/usr/bin/env bash
# Mask R-CNN on composed scenes: results/detection/run.sh NAME [OPTION …], such as scenes --workers 2.
# A second call goes on where the first one stopped; each run has one thread.
#   NAME    scenes-2-epochs  three variants, three paired seeds, one learning rate, 1,000 steps of 4 scenes: 9 runs
#           scenes-4-epochs  the same, 2,000 steps
#           scenes           the same as the recipe has it, 12 epochs, 3,000 steps of 8 scenes
#           scenes-tuned     as scenes, at each variant's best of three rates, chosen on a tenth of the training scenes: 27 runs
# CUTOUTS and PHOTOGRAPHS name the folders of Debian's tuxpaint-stamps-default and mate-backgrounds, where
# 'apt-get install' puts them by default; 'apt-get download' and 'dpkg-deb -x FILE FOLDER' do without installing.
# A step of 4 scenes takes 0.9 s of one core of an AMD EPYC (Zen 1), and an evaluation about 50 s: 19 minutes of a
# core for a run of 2 epochs, 32 for one of 4, and an hour and a half for one of 12, which is estimated.
set -euo pipefail

VARIANTS="baseline preconditioned spectral"

name=${1:?NAME of a comparison; see the list in $0}
shift
case $name in
scenes-2-epochs) how="--batch-size 4 --epochs 2 --evaluate-every 0.5 --monitor-every 1" ;;
scenes-4-epochs) how="--batch-size 4 --epochs 4 --evaluate-every 1 --monitor-every 1" ;;
scenes) how="" ;;
scenes-tuned) how="--tune 5e-4 1e-3 2e-3 --tune-seeds 2" ;;
*) echo "unknown comparison $name; see the list in $0" >&2 && exit 2 ;;
esac

conditioned-attention compare composed_scenes --cutouts "${CUTOUTS:-/usr/share/tuxpaint/stamps}" \
  --photographs "${PHOTOGRAPHS:-/usr/share/backgrounds/mate/nature}" --variants $VARIANTS --seeds 3 $how --no-cost \
  --folder "runs/detection/$name" "$@"

#!/usr/bin/env bash
# Mask R-CNN on composed scenes: results/detection/run.sh NAME [OPTION …], such as scenes --workers 2.
# A second call goes on where the first one stopped; each run has one thread.
#   NAME    scenes        three variants, three paired seeds, one learning rate: 9 runs
#           scenes-tuned  the same at each variant's best of three rates, chosen on a tenth of the training scenes: 27 runs
# CUTOUTS and PHOTOGRAPHS name the folders of Debian's tuxpaint-stamps-default and mate-backgrounds, where
# 'apt-get install' puts them by default; 'apt-get download' and 'dpkg-deb -x FILE FOLDER' do without installing.
# A run takes about 25 minutes of one core (3,000 steps of 0.45 s, six evaluations): 4 core-hours for scenes, and 11 for
# scenes-tuned, estimated from the first 600 steps of one run.
set -euo pipefail

VARIANTS="baseline preconditioned spectral"

name=${1:?NAME of a comparison; see the list in $0}
shift
case $name in
scenes) tuning="" ;;
scenes-tuned) tuning="--tune 5e-4 1e-3 2e-3 --tune-seeds 2" ;;
*) echo "unknown comparison $name; see the list in $0" >&2 && exit 2 ;;
esac

conditioned-attention compare composed_scenes --cutouts "${CUTOUTS:-/usr/share/tuxpaint/stamps}" \
  --photographs "${PHOTOGRAPHS:-/usr/share/backgrounds/mate/nature}" --variants $VARIANTS --seeds 3 $tuning --no-cost \
  --folder "runs/detection/$name" "$@"

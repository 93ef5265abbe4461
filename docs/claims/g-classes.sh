#!/bin/sh
# Table g: Imagenette's ten classes with guidance; FD against train/, KID against val/ of the archive.
. "$(dirname "$0")/common.sh"
class_latents
prediction=${PREDICTIONS%% *}
fpdm fpdm-classes "$OUT/imagenette-latents" $(objective "$prediction")
dit dit-classes "$OUT/imagenette-latents" $(objective "$prediction")
measure classes.jsonl guidance "$OUT/imagenette/train" "$OUT/imagenette/val" $(models fpdm-classes) $(models dit-classes)
table classes.jsonl guidance

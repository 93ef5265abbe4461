#!/bin/sh
# Table g: Imagenette's ten classes with guidance; FD against train/, KID against val/ of the archive.
. "$(dirname "$0")/common.sh"
images=$OUT/imagenette
if [ ! -e "$images/done" ]; then
    rm -rf "$images" && mkdir -p "$images"
    tar -xf "$DATA/imagenette128.tar" -C "$images"
    touch "$images/done"
fi
# Folders are classes.
example encode_dataset "$images/train" --codec "$CODEC" --side 128 --batch-size 64 --device "$DEVICE" \
    --out "$OUT/imagenette-latents"
prediction=${PREDICTIONS%% *}
fpdm fpdm-classes "$OUT/imagenette-latents" $(objective "$prediction")
dit dit-classes "$OUT/imagenette-latents" $(objective "$prediction")
measure classes.jsonl guidance "$images/train" "$images/val" $(models fpdm-classes) $(models dit-classes)
table classes.jsonl guidance

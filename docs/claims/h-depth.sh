#!/bin/sh
# Table h: more blocks around the solve (2/1/2), and a group of three in it (1/3/1), each trained for the same time as 1/1/1.
. "$(dirname "$0")/common.sh"
face_latents
prediction=${PREDICTIONS%% *}
fpdm "fpdm-$prediction" "$OUT/latents" --unconditional $(objective "$prediction")
fpdm fpdm-2-1-2 "$OUT/latents" --unconditional $(objective "$prediction") --pre 2 --post 2
fpdm fpdm-1-3-1 "$OUT/latents" --unconditional $(objective "$prediction") --group 3
measure_faces budgets $(models "fpdm-$prediction")
measure_faces depth $(models fpdm-2-1-2) $(models fpdm-1-3-1)
table faces.jsonl depth

#!/bin/sh
# Table b: FD and KID at 60, 120 and 240 block passes, and where FPDM spends as many multiply-adds or seconds as DiT does.
. "$(dirname "$0")/common.sh"
face_models
# A DiT and the FPDM that is given its cost predict the same: one call for each prediction.
for prediction in $PREDICTIONS; do
    measure_faces budgets,equal $(models "fpdm-$prediction") $(models "dit-$prediction")
done
table faces.jsonl budgets
table faces.jsonl equal --by multiply-adds

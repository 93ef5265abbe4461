#!/bin/sh
# Table f: estimators of the gradient, and M = N in 3, 6, 12, each trained for the same time. ESTIMATORS takes some.
. "$(dirname "$0")/common.sh"
face_latents
prediction=${PREDICTIONS%% *}
models= runs=
for estimator in $ESTIMATORS; do
    trained_as=$(trained_as "$estimator") flags=$(estimator "$estimator")
    # A run that diverges stops with an error and is in no row.
    fpdm "$trained_as" "$OUT/latents" --unconditional $(objective "$prediction") $flags ||
        echo "$estimator: a run has failed and is left out" >&2
    models="$models $(models "$estimator" "$trained_as")"
    runs="$runs $(runs "$estimator" "$trained_as")"
done
measure_faces plain $models
table faces.jsonl plain
example claims costs $runs --out "$OUT/estimators.md"
echo "== $OUT/estimators.md" && cat "$OUT/estimators.md"

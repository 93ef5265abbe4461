#!/bin/sh
# Table a: parameters, peak memory at equal batch and images/s of training, FPDM and DiT of one width, for the same time.
. "$(dirname "$0")/common.sh"
face_models
example claims costs $(all_runs) --out "$OUT/costs.md"
echo "== $OUT/costs.md" && cat "$OUT/costs.md"

#!/bin/sh
# All tables of faces but f, with every setting in one process for each prediction; then the scripts only write tables.
. "$(dirname "$0")/common.sh"
face_models
settings=budgets,equal,iterations,reuse,allocation
for prediction in $PREDICTIONS; do
    measure_faces "$settings" $(models "fpdm-$prediction") $(models "dit-$prediction")
    settings=budgets,equal
done
export DATA OUT DEVICE
for script in a-cost b-budgets c-iterations d-reuse e-allocation; do
    sh "$(dirname "$0")/$script.sh"
done

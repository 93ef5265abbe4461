#!/bin/sh
# All tables on several GPUs at once: GPUS="0 1 2 3" sh docs/claims/many-gpus.sh DATA OUT cuda
#
# A run of training or a call that measures is a job; each GPU takes the next one whose models are there. What has been done is
# not done again, and what needs a job that has failed is left out. Lines are in $OUT/parts first, so that no two calls write to one file; logs and what each job took in $OUT/log.
. "$(dirname "$0")/common.sh"
GPUS=${GPUS:-0 1}
first=${PREDICTIONS%% *}
queue=$OUT/queue
rm -rf "$queue"
mkdir -p "$queue/taken" "$queue/ended" "$queue/failed" "$OUT/parts" "$OUT/log"

# job NAME "NEEDS" COMMAND
job() { echo "$1|$2|$3" >> "$queue/jobs"; }

# one PREDICTION SEED ARCHITECTURE: trains it.
one() {
    SEEDS=$2
    "$3" "$3-$1" "$OUT/latents" --unconditional $(objective "$1")
}

# all_settings PREDICTION SEED: FPDM and DiT in one process, so that nothing is measured twice.
all_settings() {
    SEEDS=$2
    settings=budgets,equal
    if [ "$1" = "$first" ]; then settings=$settings,iterations,reuse,allocation; fi
    measure "parts/faces-$1-$2.jsonl" "$settings" "$FACES#..$TRAINED" "$FACES#$TRAINED.." \
        $(models "fpdm-$1") $(models "dit-$1")
}

# estimated ESTIMATOR SEED: trains with it, measures.
estimated() {
    SEEDS=$2 trained_as=$(trained_as "$1")
    if [ "$trained_as" = "$1" ]; then
        fpdm "$1" "$OUT/latents" --unconditional $(objective "$first") $(estimator "$1")
    fi
    measure "parts/estimator-$1-$2.jsonl" plain "$FACES#..$TRAINED" "$FACES#$TRAINED.." $(models "$1" "$trained_as")
}

# classes ARCHITECTURE SEED: trains on classes, measures.
classes() {
    SEEDS=$2
    "$1" "$1-classes" "$OUT/imagenette-latents" $(objective "$first")
    measure "parts/classes-$1-$2.jsonl" guidance "$OUT/imagenette/train" "$OUT/imagenette/val" $(models "$1-classes")
}

job faces "" face_latents
job imagenette "" class_latents
for prediction in $PREDICTIONS; do
    for architecture in fpdm dit; do
        for seed in $SEEDS; do
            job "$architecture-$prediction-$seed" faces "one $prediction $seed $architecture"
        done
    done
    for seed in $SEEDS; do
        needs="fpdm-$prediction-$seed dit-$prediction-$seed"
        job "measure-$prediction-$seed" "$needs" "all_settings $prediction $seed"
    done
done
for seed in $SEEDS; do
    for architecture in fpdm dit; do job "classes-$architecture-$seed" imagenette "classes $architecture $seed"; done
    for estimator in $ESTIMATORS; do
        job "estimator-$estimator-$seed" "faces fpdm-$first-$seed" "estimated $estimator $seed"
    done
done

# ready: the first job that nobody has taken and whose needs are met, now taken. Fails if there is none: with 1 if there will be.
ready() {
    later=
    while IFS='|' read -r name needs command; do
        [ -e "$queue/taken/$name" ] && continue
        met=1 lost=
        for need in $needs; do
            [ -e "$queue/ended/$need" ] || met=
            [ ! -e "$queue/failed/$need" ] || lost=$need
        done
        if [ -n "$lost" ]; then
            mkdir "$queue/taken/$name" 2>/dev/null || continue
            echo "$name: left out, for $lost has failed" | tee -a "$OUT/log/jobs"
            mkdir "$queue/failed/$name"
        elif [ -z "$met" ]; then
            later=1
        elif mkdir "$queue/taken/$name" 2>/dev/null; then
            return 0
        fi
    done < "$queue/jobs"
    [ -n "$later" ] && return 1
    return 2
}

worker() {
    export CUDA_VISIBLE_DEVICES=$1
    while :; do
        status=0
        ready || status=$?
        [ "$status" = 2 ] && return 0
        [ "$status" = 1 ] && sleep 1 && continue
        begun=$(date +%s)
        result=ended
        (eval "$command") > "$OUT/log/$name" 2>&1 || result=failed
        echo "$name: $result on GPU $1 after $(($(date +%s) - begun)) s, see $OUT/log/$name" | tee -a "$OUT/log/jobs"
        mkdir "$queue/$result/$name"
    done
}

for gpu in $GPUS; do worker "$gpu" & done
wait

if [ -e "$queue/failed/faces" ] || [ -e "$queue/failed/imagenette" ]; then
    echo "without latents there is nothing to measure" >&2
    exit 1
fi
cat "$OUT"/parts/faces-*.jsonl "$OUT"/parts/estimator-*.jsonl > "$OUT/faces.jsonl"
cat "$OUT"/parts/classes-*.jsonl > "$OUT/classes.jsonl"
for settings in budgets iterations reuse allocation plain; do table faces.jsonl "$settings"; done
table faces.jsonl equal --by multiply-adds
table classes.jsonl guidance
example claims costs $(all_runs) --out "$OUT/costs.md"
example claims costs $(for estimator in $ESTIMATORS; do runs "$estimator" "$(trained_as "$estimator")"; done) \
    --out "$OUT/estimators.md"
[ -z "$(ls "$queue/failed")" ] || { echo "failed: $(ls "$queue/failed" | tr '\n' ' ')" >&2 && exit 1; }

# What the scripts of this folder share; they read it. Variables, each from the environment or as said here:
#
#   DATA            faces192.tar, imagenette128.tar, taesd/ and efficientnet_lite0.safetensors   (or $1)
#   OUT             everything that is made                                                      (or $2)  claims-out
#   DEVICE          auto, cpu, cuda or metal                                                     (or $3)  auto
#   DTYPE           what networks work in: bf16 or f32                                           bf16
#   EXAMPLES        a folder of built examples; without one they are built                       -
#   FEATURES        cargo's features, without EXAMPLES                                           cuda
#   SEEDS           of training                                                                  0 1
#   TRAIN_SECONDS   of each training run                                                         170
#   TRAIN_STEPS     of each training run instead, if it is set                                   -
#   BATCH           of training                                                                  256
#   SIZE            of the networks, as train has them                                           S
#   NUM             samples of a cell                                                            2048
#   SAMPLE_BATCH    samples at a time                                                            256
#   PREDICTIONS     flow, v or both; the tables after b take the first                           flow v
#   ESTIMATORS      of table f                                             all that `estimator` below has
#   TRAIN_MORE, MEASURE_MORE   further flags of train, and of claims measure
set -eu

DATA=${1:-${DATA:?name the folder of the data: sh SCRIPT DATA [OUT [DEVICE]]}}
OUT=${2:-${OUT:-claims-out}}
DEVICE=${3:-${DEVICE:-auto}}
DTYPE=${DTYPE:-bf16}
SEEDS=${SEEDS:-0 1}
PREDICTIONS=${PREDICTIONS:-flow v}
ESTIMATORS=${ESTIMATORS:-jfb multistep unrolled phantom implicit sjfb-3 sjfb-6 sjfb-12}
FACES=$DATA/faces192.tar
CODEC=$DATA/taesd
# faces192.tar: the first 12,000 are for training.
TRAINED=${TRAINED:-12000}
if [ ! -e "$FACES" ] && [ ! -e "$DATA/imagenette128.tar" ]; then
    echo "DATA: $DATA holds neither faces192.tar nor imagenette128.tar; docs/claims/README.md says what it must hold" >&2
    exit 1
fi
mkdir -p "$OUT"

# example NAME FLAGS...
example() {
    command=$1
    shift
    if [ -n "${EXAMPLES:-}" ]; then
        "$EXAMPLES/$command" "$@"
    else
        cargo run --quiet --release --features "${FEATURES:-cuda}" --example "$command" -- "$@"
    fi
}

# face_latents: encodes the training faces, where it was stopped or not at all if all are there.
face_latents() {
    example encode_dataset "$FACES" --codec "$CODEC" --side 192 --take "$TRAINED" --batch-size 64 \
        --device "$DEVICE" --out "$OUT/latents"
}

# class_latents: unpacks and encodes Imagenette. Folders are classes.
class_latents() {
    images=$OUT/imagenette
    if [ ! -e "$images/done" ]; then
        rm -rf "$images" && mkdir -p "$images"
        tar -xf "$DATA/imagenette128.tar" -C "$images"
        touch "$images/done"
    fi
    example encode_dataset "$images/train" --codec "$CODEC" --side 128 --batch-size 64 --device "$DEVICE" \
        --out "$OUT/imagenette-latents"
}

# estimator NAME: its flags.
estimator() {
    case $1 in
        jfb) echo --estimator jfb --without-grad 6 ;;
        multistep) echo --estimator multistep --without-grad 6 --with-grad 6 ;;
        unrolled) echo --estimator unrolled --with-grad 6 ;;
        phantom) echo --estimator phantom --without-grad 6 --with-grad 6 --damp 0.5 ;;
        implicit) echo --estimator implicit --without-grad 12 --with-grad 12 ;;
        sjfb-6) ;;
        sjfb-*) echo --estimator sjfb --without-grad "${1#sjfb-}" --with-grad "${1#sjfb-}" ;;
        *) echo "ESTIMATORS: there is no $1" >&2 && return 1 ;;
    esac
}

# trained_as ESTIMATOR: the name of its runs; sjfb-6 is the estimator of the other tables.
trained_as() { if [ "$1" = sjfb-6 ]; then echo "fpdm-${PREDICTIONS%% *}"; else echo "$1"; fi; }

# objective PREDICTION: its flags.
objective() {
    case $1 in
        flow) echo --prediction flow --times logit-normal ;;
        v) echo --prediction v --no-learned-variance ;;
        *) echo "PREDICTIONS: $1 is neither flow nor v" >&2 && return 1 ;;
    esac
}

# Here, because a shell goes on where $(objective ...) among arguments fails.
for prediction in $PREDICTIONS; do objective "$prediction" > /dev/null; done
for estimator in $ESTIMATORS; do estimator "$estimator" > /dev/null; done

# train NAME LATENTS FLAGS...: one run for each seed, to $OUT/runs/NAME-SEED and $OUT/models/NAME-SEED, unless it is there.
# Fails after the last seed if one has failed.
train() {
    named=$1 latents=$2 failed=0
    shift 2
    if [ -n "${TRAIN_STEPS:-}" ]; then
        until="--steps $TRAIN_STEPS"
    else
        until="--steps 1000000 --seconds ${TRAIN_SECONDS:-170}"
    fi
    for seed in $SEEDS; do
        run=$OUT/runs/$named-$seed
        [ -e "$run/done" ] && continue
        rm -rf "$run"
        # Where words are split, they are flags.
        example train "$latents" --out "$run" --export "$OUT/models/$named-$seed" --seed "$seed" --device "$DEVICE" \
            --dtype "$DTYPE" --size "${SIZE:-S}" --codec "$CODEC" --normalise std --batch-size "${BATCH:-256}" --lr 4e-4 \
            --betas 0.9,0.99 --warmup 500 --ema 0.999 --log-every 50 --save-every 1000000 --keep 1 \
            $until ${TRAIN_MORE:-} "$@" || { failed=1 && continue; }
        touch "$run/done"
    done
    return $failed
}

# FPDM 1/1/1 and DiT 12 of one width, told the time everywhere.
fpdm() { train "$@" --architecture fpdm --condition-pre-post; }
dit() { train "$@" --architecture dit; }

# models NAME [TRAINED_AS] and runs: NAME=FOLDER for each seed.
models() { finished models "$@"; }
runs() { finished runs "$@"; }
finished() {
    for seed in $SEEDS; do
        if [ -e "$OUT/runs/${3:-$2}-$seed/done" ]; then echo "$2=$OUT/$1/${3:-$2}-$seed"; fi
    done
}

# measure RESULTS SETTINGS REFERENCE HELD_OUT MODEL...: what RESULTS has already is not measured again.
measure() {
    results=$OUT/$1 settings=$2 reference=$3 held_out=$4
    shift 4
    example claims measure "$@" --codec "$CODEC" --settings "$settings" --reference "$reference" \
        --held-out "$held_out" --weights "$DATA/efficientnet_lite0.safetensors" --cache "$OUT/features" \
        --num "${NUM:-2048}" --batch "${SAMPLE_BATCH:-256}" --dtype "$DTYPE" --device "$DEVICE" --out "$results" \
        ${MEASURE_MORE:-}
}

# measure_faces SETTINGS MODEL...
measure_faces() {
    settings=$1
    shift
    measure faces.jsonl "$settings" "$FACES#..$TRAINED" "$FACES#$TRAINED.." "$@"
}

# table RESULTS SETTINGS FLAGS...: writes $OUT/SETTINGS.md and shows it.
table() {
    results=$OUT/$1 settings=$2
    shift 2
    example claims table "$results" --settings "$settings" --out "$OUT/$settings.md" "$@"
    echo "== $OUT/$settings.md" && cat "$OUT/$settings.md"
}

# The models of table b: fpdm-flow, dit-flow, fpdm-v, dit-v.
face_models() {
    face_latents
    for prediction in $PREDICTIONS; do
        fpdm "fpdm-$prediction" "$OUT/latents" --unconditional $(objective "$prediction")
        dit "dit-$prediction" "$OUT/latents" --unconditional $(objective "$prediction")
    done
}
all_models() { for prediction in $PREDICTIONS; do models "fpdm-$prediction" && models "dit-$prediction"; done; }
all_runs() { for prediction in $PREDICTIONS; do runs "fpdm-$prediction" && runs "dit-$prediction"; done; }

# The FPDM that tables c to e are about, for each seed.
main_models() {
    prediction=${PREDICTIONS%% *}
    face_latents >&2
    fpdm "fpdm-$prediction" "$OUT/latents" --unconditional $(objective "$prediction") >&2
    models "fpdm-$prediction"
}

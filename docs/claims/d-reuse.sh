#!/bin/sh
# Table d: where solves start, at 60, 120 and 240 block passes.
. "$(dirname "$0")/common.sh"
models=$(main_models)
measure_faces reuse $models
table faces.jsonl reuse

#!/bin/sh
# Table e: iterations early, late, alike or where the residual asks for them.
. "$(dirname "$0")/common.sh"
models=$(main_models)
measure_faces allocation $models
table faces.jsonl allocation

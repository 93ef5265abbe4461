#!/bin/sh
# Table c: iterations a timestep against timesteps, at 60, 120 and 240 block passes.
. "$(dirname "$0")/common.sh"
models=$(main_models)
measure_faces iterations $models
table faces.jsonl iterations

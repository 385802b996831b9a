#!/usr/bin/env bash
# Sends a prompt to a running server with curl and jq, and writes the image to standard output. A second argument names an
# input image (image to image).
#
#   examples/curl.sh "a lighthouse at dusk" > lighthouse.png
#   examples/curl.sh "a lighthouse in winter" lighthouse.png > winter.png
#   URL=http://localhost:8000 MODEL=sd_base GEN_ARGS='{"seed": 7}' examples/curl.sh "a lighthouse" > lighthouse.png
set -euo pipefail

url="${URL:-http://localhost:8000}"
model="${MODEL:-sd_base}"
gen_args="${GEN_ARGS:-"{}"}"
prompt="${1:?usage: curl.sh PROMPT [IMAGE]}"

# An image is too long for an argument list; jq reads it from a file.
image="$(mktemp)" reply="$(mktemp)"
trap 'rm -f "$image" "$reply"' EXIT
if [ $# -gt 1 ]; then base64 -w0 "$2" >"$image"; fi

jq -n --arg prompt "$prompt" --arg gen_args "$gen_args" --rawfile image "$image" '
  def tensor(name; value): {name: name, shape: [1, 1], datatype: "BYTES", data: [value]};
  {inputs: ([tensor("prompt"; $prompt), tensor("gen_args"; $gen_args)]
            + if $image == "" then [] else [tensor("image"; $image)] end)}' |
  curl --silent --show-error --fail-with-body -H 'Content-Type: application/json' --data-binary @- \
    --output "$reply" "$url/v2/models/$model/infer" || { cat "$reply" >&2; exit 1; }
jq -r '.outputs[0].data[0]' "$reply" | base64 -d

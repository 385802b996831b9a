#!/usr/bin/env bash
# Prints the path of a Chromium or Chrome, for the tests of the page and its screenshots: the variable CHROMIUM, or the
# first one on PATH. If there is none, root gets the one of the distribution.
set -euo pipefail

find_chromium() {
  local name
  for name in ${CHROMIUM:+"$CHROMIUM"} chromium chromium-browser google-chrome google-chrome-stable; do
    if command -v "$name"; then return; fi
  done
  return 1
}

if [ -n "${CHROMIUM:-}" ] && ! command -v "$CHROMIUM" >/dev/null; then
  printf 'chromium: CHROMIUM names no program\n' >&2
  exit 1
fi
if find_chromium; then exit; fi
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
  printf 'chromium: no Chromium found: install it (Debian: apt-get install chromium), or set CHROMIUM to the program\n' >&2
  exit 1
fi
printf "chromium: installing Debian's package\n" >&2
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq >&2
apt-get install -y -qq --no-install-recommends chromium >&2
find_chromium

#!/usr/bin/env bash
# NYUD-v2, 795 + 654 images: shards/nyud.sh /path/to/NYUDv2 [OUT]
exec "$(dirname "$0")/build.sh" nyud "${1:?give the unpacked NYUDv2 folder}" "${2:-data/nyud}"

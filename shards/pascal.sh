#!/usr/bin/env bash
# PASCAL-Context, 4998 + 5105 images: shards/pascal.sh /path/to/PASCALContext [OUT]
exec "$(dirname "$0")/build.sh" pascal "${1:?give the unpacked PASCALContext folder}" "${2:-data/pascal}"

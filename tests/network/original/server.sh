#!/bin/sh
# The original's server script, re-enacted. The three o's are the original's.
btrfs receive /MirrorRoot && mv /MirrorRoot/snapshot-new /MirrorRooot/snapshot$(date +%y%m%d%H%M)

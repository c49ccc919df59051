#!/bin/sh
# Inside a guest of vmimages, in /work: the rehearsal whose words are given, with a disk of its own for the
# disks that it plays with. The report goes out with the results.
set -eu
disk=/dev/disk/by-id/btrsync-disk1
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "btrsync-rehearse: this image's $(python3 -V) is too old for btrsync, which needs 3.11"
    exit 3
}
# In the guest's root, which is memory, they would not fit.
mkfs.ext4 -q -E lazy_itable_init=1,lazy_journal_init=1 "$disk"
mount "$disk" /var/tmp
# The console is no terminal of ours.
export TERM=dumb
export PYTHONPATH=/work PYTHONDONTWRITEBYTECODE=1 TMPDIR=/var/tmp
status=0
python3 -m harness.rehearsal --json "$@" >"$BTRSYNC_RESULTS/report.json" || status=$?
umount /var/tmp
exit "$status"

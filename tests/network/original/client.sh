#!/bin/sh
# The original's client script, re-enacted: the same steps in the same order, sh instead of zsh.
# A pipeline's status is that of its last command in both shells, and there is no `set -e` in either.

snapshots=/home/foo/share/snapshots

notify-send "BtrSnapSync: Woke"

if ! btrfs subvolume snapshot -r /home/foo/share $snapshots/snapshot-new
then
  echo "BtrSnapSync: **CRITICAL** Failed to create new snapshot"
  exit 2
fi

sync -f $snapshots # the original syncs every filesystem; here they are other people's too

notify-send "BtrSnapSync: Snapshot."

if [ -e $snapshots/snapshot-old ]
then
  if btrfs send -v -p $snapshots/snapshot-old $snapshots/snapshot-new/ |
    ssh -v -i /root/.ssh/btrsnapsync daisy.local /usr/local/sbin/btrrecv.sh
  then
    notify-send "Send Snapshot."
    btrfs subvolume delete $snapshots/snapshot-old
    mv $snapshots/snapshot-new $snapshots/snapshot-old
    notify-send "Deleted old Snapshot."
  else
    notify-send "Failed to send Snapshot"
    btrfs subvolume delete $snapshots/snapshot-new
  fi
else
  if btrfs send -v $snapshots/snapshot-new |
    ssh -i /root/.ssh/btrsnapsync daisy.local /usr/local/sbin/btrrecv.sh
  then
    notify-send "Send Snapshot."
    mv $snapshots/snapshot-new $snapshots/snapshot-old
    notify-send "Deleted old Snapshot."
  else
    notify-send "Failed to send Snapshot"
    btrfs subvolume delete $snapshots/snapshot-new
  fi
fi

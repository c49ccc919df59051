#!/bin/sh
# What notify-send does: it hands the message to the session bus of a person who is logged in.
# A timer of root's has no such bus; then there is nobody to hand it to.
if [ -z "$DBUS_SESSION_BUS_ADDRESS" ]
then
  echo "Cannot autolaunch D-Bus without X11 \$DISPLAY" >&2
  exit 1
fi
echo "$1" >> "$DBUS_SESSION_BUS_ADDRESS"

#!/bin/sh
# Fails when systemd does not understand a drop-in, before it is in place: verify_drop_in.sh FILE UNIT.
# `systemd-analyze verify` takes whole units alone, and ends with 0 when it ignores a directive: so the unit is asked for
# with this drop-in, and what is said about the drop-in counts.
set -u
units=$(mktemp -d) || exit 1
trap 'rm -r "$units"' EXIT
mkdir "$units/$2.d"
cp "$1" "$units/$2.d/service.conf"
! SYSTEMD_UNIT_PATH="$units:" systemd-analyze verify --man=no "$2" 2>&1 | grep -F -e "$units/" -e "$2 has a bad unit file setting"

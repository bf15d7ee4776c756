#!/bin/sh
# Stands in for the daemon in tests of "tap-ctl spawn"; serves nothing.
case "$FAKE_TAPDISK" in
ok) (echo "a line before"; echo "$TAPDISK_RUN_DIR/ctl7654321") & ;;
exit-12) echo "cannot lock memory" >&2; exit 12 ;;
term) kill -TERM $$ ;;
usr1-always) kill -USR1 $$ ;;
mute) echo "nothing to say" ;;
*) exit 99 ;;
esac

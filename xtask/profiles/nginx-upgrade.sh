# The binary upgrade of nginx(8): a second master beside the first, then the first one's workers go, then it goes.
set -eu
cd "$DIR"
sed -i "s/x-generation [0-9]*/x-generation $GENERATION/" nginx.conf
old=$(cat pid)
kill -USR2 "$old"
# The old master renames its pid file; the new one writes its own once it listens. The caller bounds the waits.
until [ -s pid ] && [ -e pid.oldbin ] && [ "$(cat pid)" != "$old" ]; do sleep 0.01; done
kill -WINCH "$old"
kill -QUIT "$old"
# The next upgrade is refused as long as the old master is there.
while [ -e pid.oldbin ]; do sleep 0.01; done

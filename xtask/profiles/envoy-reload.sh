# Ends when the last epoch has: a restart in its drain would cut it short.
set -eu
cd "$DIR"
old=$(cat pid)
# One that has ended has no executable, even if nobody has waited for it yet.
runs() { [ -e "/proc/$1/exe" ]; }
kill -HUP "$(cat restarter.pid)"
while runs "$old"; do
    runs "$(cat pid)" || exit 1
    sleep 0.01
done
runs "$(cat pid)"

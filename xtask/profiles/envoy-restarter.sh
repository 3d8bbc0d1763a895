# What Envoy is run under for hot restarts: SIGHUP starts the next epoch beside the last one, which drains for a second
# and is told to end after two (the defaults are 600 s and 900 s). SIGTERM ends it. It has to stay, because Envoy dies
# with whoever started it (PR_SET_PDEATHSIG).
cd "$DIR" || exit
epoch=0
start() {
    sed -i "s/value: \"[0-9]*\"/value: \"$((epoch + 1))\"/" envoy.yaml
    envoy -c envoy.yaml --concurrency 2 --base-id "$PORT" --restart-epoch "$epoch" \
        --drain-time-s 1 --parent-shutdown-time-s 2 --log-level error &
    echo $! >pid.new && mv pid.new pid
    epoch=$((epoch + 1))
}
trap start HUP
trap 'kill "$(cat pid)"' TERM
trap 'rm -f "/dev/shm/envoy_shared_memory_${PORT}0"' EXIT
echo $$ >restarter.pid
start
# A signal interrupts it; that nobody is left ends it.
until wait; do :; done

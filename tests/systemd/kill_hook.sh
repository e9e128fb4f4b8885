# $BASH_ENV of an installer that is killed, with all that it has started, before its step $KILL_AT: a
# step is a command. To $STEPS_TO go number and line of each that finds other files or units than the
# step before: between two of them it makes no difference when it is killed.
set -T
n_steps=0 seen=
what_is_there() {
    {
        find /opt/edge /var/lib/edge /var/cache/edge /etc/edge /etc/passwd /etc/systemd/system \
            /run/systemd/system* /usr/lib/systemd/system/edge* /usr/bin/edge /usr/lib/udev/rules.d \
            /usr/lib/sysusers.d -printf '%p %l %m %u:%g %s %T@\n'
        systemctl show edge.socket edge.service edge-ingest@.service \
            -p FragmentPath,ActiveState,MainPID,UnitFileState,NeedDaemonReload
    } 2>/dev/null | cksum
}
look() {  # LINE
    [ "$BASHPID" = $$ ] || return 0
    n_steps=$((n_steps + 1))
    [ "$n_steps" != "${KILL_AT:-}" ] || kill -9 -- -$$
    [ -n "${STEPS_TO:-}" ] || return 0
    set -- "$1" "$(what_is_there)"
    [ "$2" != "$seen" ] || return 0
    seen=$2
    echo "$n_steps $1" >>"$STEPS_TO"
}
trap 'look $LINENO' DEBUG

# $BASH_ENV of an installer that is killed, with all that it has started, before the first command of
# line $KILL_AT; each command's line goes to $LINES_TO.
set -T
look() {
    [ "$BASHPID" = $$ ] || return 0
    [ -z "${LINES_TO:-}" ] || echo "$1" >>"$LINES_TO"
    [ "$1" != "${KILL_AT:-}" ] || kill -9 -- -$$
}
trap 'look $LINENO' DEBUG

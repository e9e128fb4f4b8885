# $BASH_ENV of an installer that is killed, with all that it has started, before the first command of line
# $KILL_AT; each command's line goes to $LINES_TO.
set -T
trap 'if [ "$BASHPID" = $$ ]; then
    [ -z "${LINES_TO:-}" ] || echo "$LINENO" >>"$LINES_TO"
    [ "$LINENO" != "${KILL_AT:-}" ] || kill -9 -- -$$
fi' DEBUG

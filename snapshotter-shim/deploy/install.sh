#!/usr/bin/env bash
# Puts spanfs on a host in the place of the SOCI snapshotter, and takes it away again.
#
#   install.sh install [OPTION…]     copy programs, units and settings, mend containerd's configuration, start
#   install.sh uninstall [OPTION…]   give everything back as it was
#   install.sh status [OPTION…]      say what is installed; status 1 if nothing is
#
#   --from DIR                where spanfs-snapshotter, soci and spanfs are (default: the folder above this one)
#   --mode lazy|parallel      which settings to install where there are none (default: lazy)
#   --settings FILE           these settings, in place of those that are there
#   --no-containerd           leave containerd's configuration alone
#   --containerd-release R    release of the host's containerd (default: asked of the one on PATH)
#   --root DIR                a host's file system other than /; nothing is started there
#   --no-start                start and restart nothing
#
# Repeating it changes nothing. If containerd does not take the snapshotter, everything is given back at once.
set -euo pipefail

here=$(dirname "$(readlink -f "$0")")
from=$(dirname "$here") mode=lazy settings='' containerd=1 release='' root='' start=1
STATE_DIRECTORY=/var/lib/spanfs-install
SETTINGS=/etc/soci-snapshotter-grpc/config.toml
CONTAINERD=/etc/containerd/config.toml
WAIT_SECONDS=60

usage() { sed -n '2,18s/^# \{0,1\}//p' "$0"; }
die() { echo "install.sh: $*" >&2; exit 1; }
wrong() { echo "install.sh: $*" >&2; usage >&2; exit 2; }

[ $# -gt 0 ] || { usage >&2; exit 2; }
command=$1
shift
while [ $# -gt 0 ]; do
    case $1 in
    --no-containerd) containerd=0 ;;
    --no-start) start=0 ;;
    -h | --help) usage; exit 0 ;;
    --from | --mode | --settings | --containerd-release | --root)
        [ $# -gt 1 ] || wrong "$1 needs a value"
        case $1 in
        --from) from=$2 ;;
        --mode) mode=$2 ;;
        --settings) settings=$2 ;;
        --containerd-release) release=$2 ;;
        --root) root=${2%/} start=0 ;;
        esac
        shift
        ;;
    *) wrong "unknown argument $1" ;;
    esac
    shift
done
case $mode in lazy | parallel) ;; *) wrong "--mode is lazy or parallel, not $mode" ;; esac

state=$root$STATE_DIRECTORY
manifest=$state/manifest

# The manifest has a line for each thing that was made: "dir PATH", "file PATH", "settings SUM PATH".
known() { [ -f "$manifest" ] && grep -qxF "$1" "$manifest"; }
note() { known "$1" || printf '%s\n' "$1" >>"$manifest"; }

make_directory() { # path below the root
    [ -d "$root$1" ] && return
    make_directory "$(dirname "$1")"
    mkdir "$root$1"
    note "dir $1"
}

make_state() {
    [ -f "$manifest" ] && return
    local path=$STATE_DIRECTORY made=()
    while path=$(dirname "$path") && [ ! -d "$root$path" ]; do
        made=("dir $path" "${made[@]}")
    done
    mkdir -p "$state"
    printf '%s\n' "${made[@]}" >"$manifest"
}

put() { # source, path below the root, mode: true if something changed
    local to=$root$2
    cmp -s "$1" "$to" && return 1
    if [ -e "$to" ] && ! known "file $2"; then
        mkdir -p "$state/before$(dirname "$2")"
        cp -a "$to" "$state/before$2"
    fi
    make_directory "$(dirname "$2")"
    note "file $2"
    # Whole or not at all, and never into a program that runs.
    cp "$1" "$to.new"
    chmod "$3" "$to.new"
    mv -f "$to.new" "$to"
    echo "installed $2"
}

sum() { sha256sum "$1" | cut -d ' ' -f 1; }

doctor() { # --fix or --undo
    local options=(--config-only "$1" --containerd-config "$root$CONTAINERD")
    [ -z "$release" ] || options+=(--containerd-release "$release")
    "$from/spanfs" doctor "${options[@]}"
}

reload() { [ $start = 0 ] || systemctl daemon-reload; }

await() { # what, command…
    local what=$1 left=$WAIT_SECONDS
    shift
    until "$@" >/dev/null 2>&1; do
        left=$((left - 1))
        [ $left -gt 0 ] || { echo "install.sh: $what: not within $WAIT_SECONDS s" >&2; return 1; }
        sleep 1
    done
}

takes_snapshotter() {
    ctr plugins ls | awk '$1 ~ /snapshotter/ && $2 == "soci" && $NF == "ok" { found = 1 } END { exit !found }'
}

run() { # changed: programs, containerd
    [ $start = 1 ] || return 0
    local programs=$1 configuration=$2
    systemctl enable --now soci-snapshotter.socket && systemctl enable soci-snapshotter.service || return 1
    if [ "$programs" = 1 ]; then
        systemctl restart soci-snapshotter.service || return 1
    fi
    [ "$configuration" = 1 ] || return 0
    systemctl restart containerd.service && await "containerd with the snapshotter soci" takes_snapshotter
}

install() {
    local programs=0 configuration=0 program unit
    for program in spanfs-snapshotter soci spanfs; do
        [ -x "$from/$program" ] || die "$from/$program is not there (see --from)"
    done
    local source=$here/config.$mode.toml
    if [ -n "$settings" ]; then source=$settings; fi
    "$from/spanfs-snapshotter" --config "$source" --check-config >/dev/null || die "$source: see above"
    make_state
    # The name chooses the peer's paths.
    put "$from/spanfs-snapshotter" /usr/local/bin/soci-snapshotter-grpc 0755 && programs=1
    put "$from/soci" /usr/local/bin/soci 0755 || true
    put "$from/spanfs" /usr/local/bin/spanfs 0755 || true
    # Keeps mounts alive while the snapshotter restarts, where systemd does not.
    [ ! -x "$from/spanfs-hold" ] || put "$from/spanfs-hold" /usr/local/bin/spanfs-hold 0755 || true
    for unit in soci-snapshotter.service soci-snapshotter.socket; do
        put "$here/systemd/$unit" /etc/systemd/system/$unit 0644 && programs=1
    done
    if [ -n "$settings" ] || [ ! -e "$root$SETTINGS" ]; then
        put "$source" "$SETTINGS" 0600 && programs=1
        known "file $SETTINGS" && note "settings $(sum "$root$SETTINGS") $SETTINGS"
    fi
    if [ $containerd = 1 ]; then
        local before=none
        [ ! -e "$root$CONTAINERD" ] || before=$(sum "$root$CONTAINERD")
        make_directory "$(dirname "$CONTAINERD")"
        if ! doctor --fix; then
            uninstall
            die "containerd's configuration can't be mended (see above); everything is as it was"
        fi
        [ "$before" = "$(sum "$root$CONTAINERD")" ] || configuration=1
    fi
    [ $programs$configuration != 00 ] || { echo "nothing to do"; return; }
    reload
    if ! run $programs $configuration; then
        uninstall
        die "the snapshotter did not start (journalctl -u soci-snapshotter -u containerd); everything is as it was"
    fi
}

uninstall() {
    [ -f "$manifest" ] || { echo "nothing is installed"; return; }
    local kind path undone=0 made
    if [ -f "$root$CONTAINERD.spanfs" ]; then
        doctor --undo
        undone=1
    fi
    if [ $start = 1 ]; then
        systemctl disable --now soci-snapshotter.service soci-snapshotter.socket || true
    fi
    while read -r kind path; do
        [ "$kind" = file ] || continue
        if [ -e "$state/before$path" ]; then
            mv -f "$state/before$path" "$root$path"
        elif [ "$path" = $SETTINGS ] && ! known "settings $(sum "$root$path") $path"; then
            echo "left $path: it was changed after it was installed"
        else
            rm -f "$root$path"
        fi
    done <"$manifest"
    made=$(tac "$manifest")
    rm -rf "$state"
    # The innermost first; what others use by now stays.
    while read -r kind path; do
        [ "$kind" != dir ] || rmdir "$root$path" 2>/dev/null || true
    done <<<"$made"
    reload
    if [ $start = 1 ]; then
        # The one that stood here before, if there was one.
        systemctl enable --now soci-snapshotter.service 2>/dev/null || true
        [ $undone = 0 ] || systemctl restart containerd.service
    fi
    echo "everything is as it was"
}

[ -n "$root" ] || [ "$(id -u)" = 0 ] || die "it needs root"
case $command in
install) install ;;
uninstall) uninstall ;;
status)
    [ -f "$manifest" ] || { echo "nothing is installed"; exit 1; }
    awk '$1 == "file" { print "installed " $2 }' "$manifest"
    ;;
-h | --help | help) usage ;;
*) wrong "unknown command $command" ;;
esac

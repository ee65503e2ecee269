#!/usr/bin/env bash
# Puts erofs-utils of a newer Debian than this machine's into a folder of its own, beside the
# libraries it needs, and changes nothing else: PREFIX/bin/{fsck,dump,mkfs}.erofs run from there.
#
#   tests/peers/erofs-utils.sh PREFIX [SUITE]     (SUITE: trixie)
#
# Only Debian packages, by apt, signatures checked against this machine's Debian keys. Running it
# again does nothing if the tools are there.
set -euo pipefail

prefix=${1:?usage: erofs-utils.sh PREFIX [SUITE]}
suite=${2:-trixie}
mkdir -p "$prefix"
prefix=$(readlink -f "$prefix")

if [ -x "$prefix/bin/fsck.erofs" ] && "$prefix/bin/fsck.erofs" --version >/dev/null 2>&1; then
    exit 0
fi

keyring=/usr/share/keyrings/debian-archive-keyring.gpg
[ -r "$keyring" ] || { echo "erofs-utils.sh: $keyring is missing (package debian-archive-keyring)" >&2; exit 1; }

apt="$prefix/apt"
mkdir -p "$apt"/{etc/apt.conf.d,etc/preferences.d,etc/trusted.gpg.d,state/lists/partial,cache/archives/partial,debs}
: >"$apt/status"
echo "deb [signed-by=$keyring] http://deb.debian.org/debian $suite main" >"$apt/etc/sources.list"
options=(
    -o "Dir::Etc=$apt/etc" -o "Dir::Etc::sourcelist=$apt/etc/sources.list" -o "Dir::Etc::sourceparts=/dev/null"
    -o "Dir::State=$apt/state" -o "Dir::State::status=$apt/status" -o "Dir::Cache=$apt/cache"
    -o "Acquire::Languages=none" -o "Acquire::Retries=3" -o "APT::Sandbox::User=root"
)
apt-get "${options[@]}" -qq update

# Everything down to libc: our own may be older.
packages=$(apt-cache "${options[@]}" depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks \
    --no-replaces --no-enhances erofs-utils | grep -E '^[a-z0-9]' | grep -v -E '^(debconf|gcc-[0-9]+-base)' | sort -u)
(cd "$apt/debs" && apt-get "${options[@]}" -qq download $packages)
for deb in "$apt"/debs/*.deb; do
    dpkg -x "$deb" "$prefix/root"
done

loader=$(find "$prefix/root/" -name 'ld-linux-*.so.*' | head -n 1)
libraries=$(find "$prefix/root/usr/lib" -name '*.so*' -printf '%h\n' | sort -u | paste -sd:)
mkdir -p "$prefix/bin"
for tool in fsck.erofs dump.erofs mkfs.erofs; do
    program=$(find "$prefix/root/" -type f -name "$tool" | head -n 1)
    [ -n "$program" ] || { echo "erofs-utils.sh: no $tool in the packages of $suite" >&2; exit 1; }
    cat >"$prefix/bin/$tool" <<EOF
#!/bin/sh
exec "$loader" --library-path "$libraries" "$program" "\$@"
EOF
    chmod +x "$prefix/bin/$tool"
done
rm -rf "$apt"
"$prefix/bin/fsck.erofs" --version

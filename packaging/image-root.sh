#!/bin/sh
# Makes the root of an image: image-root.sh BINARY FOLDER. Takes the libraries and the certificates
# of the system that it runs on, which is the one that the program was built on.
set -eu
binary=$1
root=$2
umask 022
install -D -m 755 "$binary" "$root/usr/bin/walsweep"
# The program's interpreter and what it loads; the paths stay what they are.
ldd "$binary" | sed -n 's|.*[[:space:]]\(/[^ ]*\) (0x.*|\1|p' | while read -r library; do
    install -D -m 755 "$(realpath "$library")" "$root$library"
done
install -D -m 644 /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
# Names: of files, such as /etc/hosts, before those of a name server.
install -d "$root/etc"
echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
echo 'walsweep:x:65534:65534::/:/nonexistent' >"$root/etc/passwd"
echo 'walsweep:x:65534:' >"$root/etc/group"
install -d "$root/etc/walsweep"

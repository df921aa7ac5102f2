#!/bin/sh
# Looks through the package and the manifests with the tools of their trade: check.sh DEB. Needs
# lintian, and python3 with venv, into which the validators of compose and Kubernetes are installed.
set -eu
deb=$(realpath "$1")
cd "$(dirname "$0")/.."
venv=target/packaging-venv
if [ ! -x $venv/bin/kubernetes-validate ] || [ ! -x $venv/bin/check-jsonschema ]; then
    python3 -m venv $venv
    $venv/bin/pip install --quiet kubernetes-validate check-jsonschema yamllint
fi
for script in packaging/*.sh packaging/deb/postinst packaging/deb/prerm packaging/deb/postrm; do
    case "$(head -n 1 "$script")" in
    *bash) bash -n "$script" ;;
    *) dash -n "$script" ;;
    esac
done

echo "== lintian"
# It is in no archive, so it closes no bug there; whoever builds it names himself by DEBEMAIL.
tags=bogus-mail-host,bogus-mail-host-in-debian-changelog,initial-upload-closes-no-bugs
lintian --fail-on error,warning --suppress-tags "$tags" "$deb"

echo "== compose"
$venv/bin/check-jsonschema --builtin-schema vendor.compose-spec packaging/compose.yaml

echo "== Kubernetes"
$venv/bin/yamllint -d '{extends: relaxed, rules: {line-length: {max: 100}}}' \
    packaging/compose.yaml packaging/kubernetes
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# What `kubectl apply -k` would send, where there is a kubectl.
if command -v kubectl >/dev/null; then
    cp packaging/kubernetes/* "$work"
    printf secret >"$work/pg.password"
    kubectl kustomize "$work" >"$work/all.yaml"
    $venv/bin/kubernetes-validate --strict "$work/all.yaml"
else
    $venv/bin/kubernetes-validate --strict packaging/kubernetes/deployment.yaml \
        packaging/kubernetes/disruption.yaml
fi

#!/usr/bin/env bash
# Makes a fresh Debian machine ready for the lab and the tests: checks what it cannot install, installs
# what it can, builds the Kubernetes programs. `make lab`, `make test` and CI all come through here.
# Quick when nothing is missing; safe to run again at any time. `setup.sh lint` adds what `make lint` needs,
# `setup.sh plugin` does what `make plugin` needs alone.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

MACHETE=0.9.2

# Only what is used: the container runtime and network plugins, the tools that the lab and its tests
# call, the libraries that the agent is linked with, the contents of the toolbox image, the C library that the
# kubectl plugin is linked with.
PACKAGES=(containerd runc containernetworking-plugins iproute2 nftables iptables conntrack tcpdump
          iperf3 busybox libnftnl-dev libmnl-dev pkg-config gcc libc6-dev
          musl-tools)

LAB=$PWD/target/lab
BIN=$LAB/bin
LOGS=$LAB/logs

fail() {
  echo "setup: $*" >&2
  exit 1
}

ticker=
policy_file=
clean_up() {
  [ -z "$ticker" ] || kill "$ticker" 2>/dev/null || true
  [ -z "$policy_file" ] || rm -f "$policy_file"
}
trap clean_up EXIT

# Every half minute a sign of life: the elapsed time and the last line of the log. It waits by a pipe that
# nobody writes to, so that there is no second process to end with it.
tick() {
  local what=$1 log=$2 start=$3 never
  exec {never}<> <(:)
  while ! read -r -t 30 -u "$never"; do
    echo "setup: $what: $((SECONDS - start)) s, $(tail -n 1 "$log" | cut -c1-80)"
  done
}

# step NAME WHAT COMMAND...: runs a long step with its output in a log; shows the elapsed time, and on
# failure the log's end.
step() {
  local log=$LOGS/$1.log what=$2 start=$SECONDS status=0
  shift 2
  mkdir -p "$LOGS"
  : >"$log"
  echo "setup: $what (log: ${log#"$PWD"/})"
  tick "$what" "$log" "$start" &
  ticker=$!
  "$@" >"$log" 2>&1 || status=$?
  kill "$ticker" && wait "$ticker" 2>/dev/null || true
  ticker=
  if [ "$status" != 0 ]; then
    echo "setup: FAILED after $((SECONDS - start)) s: $what; the end of its log:" >&2
    tail -n 25 "$log" >&2
    exit 1
  fi
  echo "setup: $what: done in $((SECONDS - start)) s"
}

check_tools() {
  [ "$(uname -s)" = Linux ] || fail "this needs Linux"
  [ "$(id -u)" = 0 ] || fail "this needs root: it makes network namespaces (try: sudo -E make lab)"
  command -v go >/dev/null || fail "Go is missing: install Go 1.25 or newer and put it on the PATH"
  command -v cargo >/dev/null || fail "Rust is missing: install it by rustup and put cargo on the PATH"
}

missing_packages() {
  local package
  for package in "${PACKAGES[@]}"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || echo "$package"
  done
}

install_packages() {
  local missing policy=/usr/sbin/policy-rc.d
  mapfile -t missing < <(missing_packages)
  [ "${#missing[@]}" -gt 0 ] || return 0
  command -v apt-get >/dev/null || fail "these Debian packages are missing, and there is no apt-get: ${missing[*]}"
  # The machine's own containerd has no part in the lab: its service is not to be started.
  if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod +x $policy
    policy_file=$policy
  fi
  step apt-update "update the package lists" apt-get update
  step apt-install "install ${missing[*]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y --no-install-recommends "${missing[@]}"
}

# What the kubectl plugin is built for: no library of the machine that it runs on.
add_static_target() {
  local target
  target=$(uname -m)-unknown-linux-musl
  [ ! -d "$(rustc --print sysroot)/lib/rustlib/$target" ] || return 0
  command -v rustup >/dev/null || fail "Rust's target $target is missing, and there is no rustup to add it"
  step rust-target "add Rust's target $target" rustup target add "$target"
}

# Asks the kernel itself, in a throw-away namespace.
check_kernel() {
  local try="unshare --net --mount"
  $try true 2>/dev/null || fail "this kernel or container does not allow network and mount namespaces"
  $try ip link add try0 type veth 2>/dev/null || fail "this kernel has no veth devices (CONFIG_VETH)"
  $try ip link add try0 type bridge 2>/dev/null || fail "this kernel has no bridge (CONFIG_BRIDGE)"
  $try ip link add try0 type vxlan id 70000 dstport 4500 gbp 2>/dev/null ||
    fail "this kernel has no VXLAN with group policy (CONFIG_VXLAN)"
  $try nft 'add table inet t; add chain inet t c { type nat hook postrouting priority 100; }; add rule inet t c ct mark 1 masquerade' \
    2>/dev/null || fail "this kernel has no nftables with NAT (CONFIG_NF_TABLES, CONFIG_NFT_NAT, CONFIG_NFT_MASQ)"
  $try mount -t overlay overlay -o lowerdir=/etc:/usr /mnt 2>/dev/null ||
    fail "this kernel or container does not allow overlay mounts (CONFIG_OVERLAY_FS)"
  grep -q ' cgroup2 ' /proc/self/mounts ||
    fail "no cgroup2 file system is mounted (try: mkdir -p /sys/fs/cgroup/unified; mount -t cgroup2 none /sys/fs/cgroup/unified)"
}

# One build of all programs: they share most of their packages. A stamp says what was built.
build_programs() {
  local name stamp
  stamp=$(cat e2e/kube/{go.mod,go.sum,main.go,coredns/main.go} e2e/flannel/{,plugin/}go.{mod,sum} e2e/flannel/main.go \
    e2e/setup.sh | sha256sum | cut -c1-16)
  if [ "$(cat "$BIN/.stamp" 2>/dev/null)" != "$stamp" ]; then
    mkdir -p "$BIN"
    step build "build the Kubernetes programs (some minutes, the first time)" go_build
    echo "$stamp" >"$BIN/.stamp"
  fi
  for name in etcd kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubectl; do
    [ "$(readlink "$BIN/$name")" = kube ] || ln -sfn kube "$BIN/$name"
  done
}

# The version, which every program of Kubernetes reports and checks, and which helm takes a cluster to have
# when there is none to ask (`helm template`, `helm lint`).
go_build() {
  local version major minor package flags=()
  version=$(sed -n 's/.*k8s.io\/kubernetes v//p' e2e/kube/go.mod)
  [ -n "$version" ] || return 1
  IFS=. read -r major minor _ <<<"$version"
  for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    flags+=(-X "$package.gitVersion=v$version" -X "$package.gitMajor=$major" -X "$package.gitMinor=$minor"
            -X "$package.gitTreeState=clean")
  done
  for package in helm.sh/helm/v3/pkg/chartutil helm.sh/helm/v3/pkg/lint/rules; do
    flags+=(-X "$package.k8sVersionMajor=$major" -X "$package.k8sVersionMinor=$minor")
  done
  export CGO_ENABLED=0
  (cd e2e/kube && go build -v -trimpath -ldflags "-s -w ${flags[*]}" -o "$BIN/" . ./coredns helm.sh/helm/v3/cmd/helm)
  # Modules of their own: flannel is built with the libraries that it is released with.
  (cd e2e/flannel && go build -v -trimpath -ldflags "-s -w" -o "$BIN/flanneld" .)
  (cd e2e/flannel/plugin && go build -v -trimpath -ldflags "-s -w" -o "$BIN/" \
    github.com/containernetworking/plugins/plugins/meta/flannel)
}

# Finds dependencies that nothing uses: `make lint`.
build_machete() {
  "$BIN/cargo-machete" --version 2>/dev/null | grep -qF "$MACHETE" ||
    step machete "build cargo-machete" cargo install --locked --root "$LAB" "cargo-machete@$MACHETE"
}

# Enough for `make plugin`, on any machine.
if [ "${1:-}" = plugin ]; then
  PACKAGES=(gcc musl-tools)
  install_packages
  add_static_target
  exit
fi

check_tools
install_packages
add_static_target
check_kernel
build_programs
[ "${1:-}" != lint ] || build_machete

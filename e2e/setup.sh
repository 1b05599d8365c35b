#!/usr/bin/env bash
# Makes a fresh Debian machine ready for the lab and the tests: checks what it cannot install, installs
# what it can, builds the Kubernetes programs. `make lab`, `make test` and CI all come through here.
# Quick when nothing is missing; safe to run again at any time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

KUBERNETES=1.34.4
HELM=v3.22.0
COREDNS=v1.15.0

# Only what is used: the container runtime and network plugins, the tools that the lab and its tests
# call, the libraries that the agent is linked with, the contents of the toolbox image.
PACKAGES=(containerd runc containernetworking-plugins iproute2 nftables iptables conntrack tcpdump
          iperf3 busybox libnftnl-dev libmnl-dev pkg-config gcc)

LAB=$PWD/target/lab
BIN=$LAB/bin
LOGS=$LAB/logs

fail() {
  echo "setup: $*" >&2
  exit 1
}

# step WHAT COMMAND...: runs a long step with its output in a log; shows the elapsed time, and on failure
# the log's end.
step() {
  local what=$1 log start=$SECONDS pid
  shift
  log="$LOGS/$(tr -cs '[:alnum:]' '-' <<<"$what" | sed 's/-*$//').log"
  mkdir -p "$LOGS"
  echo "setup: $what (log: ${log#"$PWD"/})"
  "$@" >"$log" 2>&1 &
  pid=$!
  while kill -0 "$pid" 2>/dev/null; do
    # Every half minute a sign of life; `wait -n` with a timer would need a second process as well.
    for _ in $(seq 30); do
      kill -0 "$pid" 2>/dev/null || break
      sleep 1
    done
    kill -0 "$pid" 2>/dev/null && echo "setup: $what: still at it, $((SECONDS - start)) s"
  done
  if ! wait "$pid"; then
    echo "setup: FAILED after $((SECONDS - start)) s: $what; the end of its log:" >&2
    tail -n 25 "$log" >&2
    exit 1
  fi
  echo "setup: $what: done in $((SECONDS - start)) s"
}

check_tools() {
  [ "$(uname -s)" = Linux ] || fail "this needs Linux"
  [ "$(id -u)" = 0 ] || fail "this needs root: it makes network namespaces (try: sudo -E make lab)"
  command -v go >/dev/null || fail "Go is missing: install Go 1.24 or newer and put it on the PATH"
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
    # shellcheck disable=SC2064
    trap "rm -f $policy" EXIT
  fi
  step "update the package lists" apt-get update
  step "install ${#missing[@]} packages" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y --no-install-recommends "${missing[@]}"
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

# build NAME STAMP COMMAND...: builds a program unless the one that is there carries this stamp.
build() {
  local name=$1 stamp=$2
  shift 2
  [ -x "$BIN/$name" ] && [ "$(cat "$BIN/.$name.stamp" 2>/dev/null)" = "$stamp" ] && return 0
  mkdir -p "$BIN"
  step "build $name (minutes, the first time)" "$@"
  echo "$stamp" >"$BIN/.$name.stamp"
}

build_kube() {
  local package flags=()
  for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    flags+=(-X "$package.gitVersion=v$KUBERNETES" -X "$package.gitMajor=${KUBERNETES%%.*}"
            -X "$package.gitMinor=$(cut -d. -f2 <<<$KUBERNETES)" -X "$package.gitTreeState=clean")
  done
  (cd e2e/kube && go build -trimpath -ldflags "-s -w ${flags[*]}" -o "$BIN/kube" .)
}

# Without a cluster helm takes the one it was built for: `helm template` and `helm lint` then render for it.
build_helm() {
  local package flags=()
  for package in pkg/chartutil pkg/lint/rules; do
    flags+=(-X "helm.sh/helm/v3/$package.k8sVersionMajor=${KUBERNETES%%.*}"
            -X "helm.sh/helm/v3/$package.k8sVersionMinor=$(cut -d. -f2 <<<$KUBERNETES)")
  done
  go install -trimpath -ldflags "-s -w ${flags[*]}" "helm.sh/helm/v3/cmd/helm@$HELM"
}

build_programs() {
  local name sources
  export CGO_ENABLED=0 GOBIN=$BIN
  grep -q "k8s.io/kubernetes v$KUBERNETES" e2e/kube/go.mod || fail "e2e/kube/go.mod is not for Kubernetes $KUBERNETES"
  sources=$(cat e2e/kube/{go.mod,go.sum,main.go} | sha256sum | cut -c1-16)
  build kube "$KUBERNETES $sources" build_kube
  build helm "$HELM $KUBERNETES" build_helm
  build coredns "$COREDNS" go install -trimpath -ldflags "-s -w" "github.com/coredns/coredns@$COREDNS"
  for name in etcd kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubectl; do
    [ "$(readlink "$BIN/$name")" = kube ] || ln -sfn kube "$BIN/$name"
  done
}

check_tools
install_packages
check_kernel
build_programs

// Command flanneld is flannel with its VXLAN backend: its own packages, called as its own main calls them.
// That main has every cloud's backend as well, and needs modules that are not to be had everywhere.
package main

import (
	"context"
	"flag"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/flannel-io/flannel/pkg/backend"
	_ "github.com/flannel-io/flannel/pkg/backend/vxlan"
	"github.com/flannel-io/flannel/pkg/ip"
	"github.com/flannel-io/flannel/pkg/ipmatch"
	"github.com/flannel-io/flannel/pkg/lease"
	"github.com/flannel-io/flannel/pkg/subnet"
	"github.com/flannel-io/flannel/pkg/subnet/kube"
	"github.com/flannel-io/flannel/pkg/trafficmngr"
	"github.com/flannel-io/flannel/pkg/trafficmngr/iptables"
	"github.com/flannel-io/flannel/pkg/trafficmngr/nftables"
	"k8s.io/klog/v2"
)

// The defaults of flannel's own flags.
const (
	annotations   = "flannel.alpha.coreos.com"
	networkConfig = "/etc/kube-flannel/net-conf.json"
	subnetFile    = "/run/flannel/subnet.env"
	resyncSeconds = 5
)

func main() {
	klog.InitFlags(nil)
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		klog.ErrorS(err, "flanneld ends")
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	manager, err := kube.NewSubnetManager(ctx, "", "", annotations, networkConfig, true)
	if err != nil {
		return err
	}
	config, err := manager.GetNetworkConfig(ctx)
	if err != nil {
		return err
	}
	var running sync.WaitGroup
	network, err := register(ctx, manager, config, &running)
	if err != nil {
		return err
	}
	if err := writeRules(ctx, config, network.Lease()); err != nil {
		return err
	}
	lease := network.Lease()
	if err := manager.HandleSubnetFile(subnetFile, config, true, lease.Subnet, lease.IPv6Subnet, network.MTU()); err != nil {
		return err
	}
	running.Add(1)
	go func() {
		network.Run(ctx)
		running.Done()
	}()
	err = manager.CompleteLease(ctx, lease, &running)
	running.Wait()
	return err
}

func register(
	ctx context.Context, manager subnet.Manager, config *subnet.Config, running *sync.WaitGroup,
) (backend.Network, error) {
	stack, err := ipmatch.GetIPFamily(config.EnableIPv4, config.EnableIPv6)
	if err != nil {
		return nil, err
	}
	outside, err := ipmatch.LookupExtIface("", "", "", stack, ipmatch.PublicIPOpts{})
	if err != nil {
		return nil, err
	}
	chosen, err := backend.NewManager(ctx, manager, outside).GetBackend(config.BackendType)
	if err != nil {
		return nil, err
	}
	return chosen.RegisterNetwork(ctx, running, config)
}

// As with --ip-masq, and with --iptables-forward-rules, which is the default.
func writeRules(ctx context.Context, config *subnet.Config, lease *lease.Lease) error {
	var rules, others trafficmngr.TrafficManager = &iptables.IPTablesManager{}, &nftables.NFTablesManager{}
	if config.EnableNFTables {
		rules, others = others, rules
	}
	if err := others.CleanUp(ctx); err != nil {
		return err
	}
	if err := rules.Init(ctx); err != nil {
		return err
	}
	var none ip.IP4Net
	none6 := ip.IP6Net{IP: &ip.IP6{}}
	err := rules.SetupAndEnsureMasqRules(ctx, config.Network, none, none, config.IPv6Network, none6, none6,
		lease, resyncSeconds, false)
	if err != nil {
		return err
	}
	rules.SetupAndEnsureForwardRules(ctx, config.Network, config.IPv6Network, resyncSeconds)
	return nil
}

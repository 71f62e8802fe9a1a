// SPDX-License-Identifier: Apache-2.0

// Package zds runs the server of Istio's node agent (istio-cni) that tells a
// ztunnel its pods, with the rules that the agent puts into them.
//
// It is the agent's own code below its Kubernetes informers: the socket and its
// protocol, the cache of pods with their namespaces, the rules by nftables.
package zds

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"istio.io/istio/cni/pkg/config"
	"istio.io/istio/cni/pkg/iptables"
	"istio.io/istio/cni/pkg/nodeagent"
	"istio.io/istio/cni/pkg/trafficmanager"
	"istio.io/istio/pkg/log"
)

// Config is a node agent.
type Config struct {
	Socket string
	Rules  bool // put the agent's own rules into pods
}

// Ready is the line that [Run] prints when the socket is there.
const Ready = "ready"

// Answer begins each answer: the agent logs to standard output too.
const Answer = "zds: "

// Run serves until in ends. Each line of in is an order, answered by a line of
// out with "ok" or what went wrong:
//
//	add NAMESPACE NAME ACCOUNT UID NETNS
//	del NAMESPACE NAME ACCOUNT UID
func Run(cfg Config, in io.Reader, out io.Writer) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	rules, err := rulesOf(cfg)
	if err != nil {
		return err
	}
	const keepalive = 50 * time.Millisecond // between looks at an idle connection, as the agent has it
	pods := cache{newPodNetnsCache(nodeagent.OpenNetns)}
	p, err := newZtunnelServer(cfg.Socket, pods, keepalive)
	if err != nil {
		return err
	}
	agent := newNetServer(server{p}, pods.p, rules, nobody{})
	agent.Start(ctx)
	defer agent.Stop(false)
	fmt.Fprintln(out, Ready)

	lines := bufio.NewScanner(in)
	for lines.Scan() {
		if err := order(ctx, agent, strings.Fields(lines.Text())); err != nil {
			fmt.Fprintln(out, Answer+strings.ReplaceAll(err.Error(), "\n", " "))
			continue
		}
		fmt.Fprintln(out, Answer+"ok")
	}
	return lines.Err()
}

// order obeys one line.
func order(ctx context.Context, agent *nodeagent.NetServer, words []string) error {
	const patience = 20 * time.Second
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if len(words) < 5 {
		return fmt.Errorf("unknown order %q", words)
	}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: words[1], Name: words[2], UID: types.UID(words[4])},
		Spec:       corev1.PodSpec{ServiceAccountName: words[3]},
	}
	switch {
	case words[0] == "add" && len(words) == 6:
		return agent.AddPodToMesh(ctx, pod, []netip.Addr{}, words[5])
	case words[0] == "del" && len(words) == 5:
		return agent.RemovePodFromMesh(ctx, pod, false)
	}
	return fmt.Errorf("unknown order %q", words)
}

// rulesOf are the rules of pods: the agent's, or none.
func rulesOf(cfg Config) (trafficmanager.TrafficRuleManager, error) {
	if !cfg.Rules {
		return noRules{}, nil
	}
	probes := &config.AmbientConfig{
		RedirectDNS: true, EnableIPv6: true,
		HostProbeSNATAddress: nodeagent.HostProbeSNATIP, HostProbeV6SNATAddress: nodeagent.HostProbeSNATIPV6,
	}
	_, pods, err := trafficmanager.NewTrafficRuleManager(&trafficmanager.TrafficRuleManagerConfig{
		NativeNftables: true, HostConfig: probes, PodConfig: probes, NlDeps: iptables.RealNlDeps(),
	})
	return pods, err
}

// noRules leaves pods as they are: somebody else captures.
type noRules struct{}

var _ trafficmanager.TrafficRuleManager = noRules{}

func (noRules) CreateInpodRules(*log.Scope, config.PodLevelOverrides) error { return nil }
func (noRules) DeleteInpodRules(*log.Scope) error                           { return nil }
func (noRules) CreateHostRulesForHealthChecks() error                       { return nil }
func (noRules) DeleteHostRules()                                            {}
func (noRules) ReconcileModeEnabled() bool                                  { return false }

// nobody looks for namespaces of pods that came without one.
type nobody struct{}

var _ nodeagent.PodNetnsFinder = nobody{}

func (nobody) FindNetnsForPods(map[types.UID]*corev1.Pod) (nodeagent.PodToNetns, error) {
	return nodeagent.PodToNetns{}, nil
}

// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/test/netlab"
	"github.com/ztunnel-go/ztunnel/test/privileged"
)

// istioRules are those of contract 2.7, as istio-cni writes them into a pod's
// namespace; "ip" lines go to ip(8), the others to iptables and, where they
// name no IPv4 address, to ip6tables.
const istioRules = `
-t mangle -N ISTIO_PRERT
-t mangle -N ISTIO_OUTPUT
-t nat -N ISTIO_PRERT
-t nat -N ISTIO_OUTPUT
-t mangle -A PREROUTING -j ISTIO_PRERT
-t mangle -A OUTPUT -j ISTIO_OUTPUT
-t nat -A OUTPUT -j ISTIO_OUTPUT
-t nat -A PREROUTING -j ISTIO_PRERT
-t mangle -A ISTIO_PRERT -m mark --mark 0x539/0xfff -j CONNMARK --set-xmark 0x111/0xfff
-t mangle -A ISTIO_OUTPUT -m connmark --mark 0x111/0xfff -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff
-t nat -A ISTIO_PRERT -s 169.254.7.127 -p tcp -m tcp -j ACCEPT
-t nat -A ISTIO_PRERT ! -d 127.0.0.1/32 -p tcp ! --dport 15008 -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15006
-t nat -A ISTIO_OUTPUT -d 169.254.7.127 -p tcp -m tcp -j ACCEPT
-t nat -A ISTIO_OUTPUT ! -o lo -p udp -m mark ! --mark 0x539/0xfff -m udp --dport 53 -j REDIRECT --to-ports 15053
-t nat -A ISTIO_OUTPUT ! -d 127.0.0.1/32 -p tcp --dport 53 -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15053
-t nat -A ISTIO_OUTPUT -p tcp -m mark --mark 0x111/0xfff -j ACCEPT
-t nat -A ISTIO_OUTPUT ! -d 127.0.0.1/32 -o lo -j ACCEPT
-t nat -A ISTIO_OUTPUT ! -d 127.0.0.1/32 -p tcp -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15001
ip route add local 0.0.0.0/0 dev lo table 100
ip rule add fwmark 0x111/0xfff pref 32764 lookup 100
`

func likeIstio(t *testing.T, pod *netlab.Pod) {
	t.Helper()
	iptables := "iptables-legacy"
	if _, err := exec.LookPath(iptables); err != nil {
		iptables = "iptables"
	}
	if _, err := exec.LookPath(iptables); err != nil {
		privileged.Lacking(t, fmt.Errorf("iptables stands in for istio-cni: %w", err))
	}
	for _, line := range strings.Split(strings.TrimSpace(istioRules), "\n") {
		args := strings.Fields(line)
		if args[0] != "ip" {
			args = append([]string{iptables}, args...)
		}
		cmd := exec.Command(args[0], args[1:]...)
		var out strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &out
		must(t, pod.Start(cmd))
		if err := cmd.Wait(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out.String())
		}
	}
}

func TestIstiosRulesAreUsedAsTheyAre(t *testing.T) {
	for _, mode := range []Mode{Auto, IstioCNI} {
		t.Run(mode.String(), func(t *testing.T) {
			r := newRig(t, func(c *Config) { c.Mode = mode })
			pod, other := r.pod("a"), r.pod("b")
			app(t, pod.Host, "[::]:8080")
			app(t, other.Host, "[::]:8080")
			likeIstio(t, pod)
			p := r.capture(pod)
			if p.Tier() != TierIstioCNI {
				t.Fatalf("tier %v", p.Tier())
			}
			got, err := ask(pod.Host, "203.0.113.9:443", "x")
			wants(t, "outbound", got, err, "outbound dst=203.0.113.9:443 peer="+pod.IPv4.String())
			got, err = ask(other.Host, pod.Addr(8080).String(), "x")
			wants(t, "inbound", got, err, fmt.Sprintf("inbound plaintext dst=%v peer=%v\napp from=%v\nx", pod.Addr(8080), other.IPv4, other.IPv4))
			got, err = ask(other.Host, pod.Addr(15008).String(), "x")
			wants(t, "HBONE", got, err, fmt.Sprintf("inbound dst=%v", pod.Addr(15008)))
			c, err := p.Dial(context.Background(), other.Addr(8080))
			must(t, err)
			defer c.Close()
			got, err = talk(c, "x")
			wants(t, "Dial", got, err, "app from="+pod.IPv4.String())
			u, err := pod.Dial(context.Background(), "udp", "10.96.0.10:53")
			must(t, err)
			defer u.Close()
			got, err = exchange(u, "q")
			wants(t, "DNS", got, err, "dns q")
			got, err = ask(pod.Host, "10.96.0.10:53", "")
			wants(t, "DNS over TCP", got, err, "dns-tcp")
		})
	}
}

func TestAutoTakesEBPFWhereThereAreNoRules(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Mode = Auto })
	if p := r.capture(r.pod("a")); p.Tier() != TierEBPF {
		t.Errorf("tier %v", p.Tier())
	}
}

func TestNothingIsTierCWithoutRules(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Mode = IstioCNI })
	p := r.add(r.pod("a"))
	if err := p.Enable(context.Background()); err == nil || !strings.Contains(err.Error(), "istio-cni's rules do not redirect") {
		t.Errorf("Enable: %v", err)
	}
}

func TestPortsOfATierCListenerAreSharedOnlyIfAsked(t *testing.T) {
	for _, reuse := range []bool{true, false} {
		t.Run(fmt.Sprint(reuse), func(t *testing.T) {
			r := newRig(t, func(c *Config) { c.Mode, c.PortReuse = IstioCNI, reuse })
			pod := r.pod("a")
			r.add(pod)
			// As the next process does, while this one drains.
			second, err := r.node.Add(context.Background(), PodInfo{UID: "a", Name: "a", Namespace: "test"}, pod.NS())
			if reuse != (err == nil) || err != nil && !errors.Is(err, unix.EADDRINUSE) {
				t.Errorf("with %v: %v", reuse, err)
			}
			if err == nil {
				must(t, second.Release())
			}
		})
	}
}

func TestAutoFindsRulesThatLeadToTheProcessBefore(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Mode, c.PortReuse = Auto, true })
	pod, plain := r.pod("a"), r.pod("b")
	likeIstio(t, pod)
	for range 2 {
		if p := r.capture(pod); p.Tier() != TierIstioCNI {
			t.Errorf("tier %v", p.Tier())
		}
		r.open()
	}
	// Where there are no rules, a listener leads nobody astray.
	l, err := plain.Listen("tcp", ":15001")
	must(t, err)
	t.Cleanup(func() { l.Close() })
	if p := r.capture(plain); p.Tier() != TierEBPF {
		t.Errorf("without rules: tier %v", p.Tier())
	}
}

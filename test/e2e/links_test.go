// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/ztunnel-go/ztunnel/test/netlab"
)

// A veth is a record of everything a pod sends.
type veth struct {
	pod *netlab.Pod
	*netlab.Recorder
}

// record keeps what a pod sends from now on.
func record(t *testing.T, pod *netlab.Pod) veth {
	t.Helper()
	r, err := pod.Node().Record(pod.VethName, func(p *netlab.Packet) bool {
		return p.Src.Addr() == pod.IPv4 || p.Src.Addr() == pod.IPv6
	})
	must(t, err)
	t.Cleanup(func() { r.Stop() })
	return veth{pod, r}
}

// kind says what a packet is: "dns", "tunnel", "end of tunnel", "tcp",
// or "" for what nobody asks about (neighbours, pings).
func kind(p *netlab.Packet) string {
	switch {
	case p.Proto == netlab.ProtoUDP && p.Dst.Port() == 53:
		return "dns"
	case p.TCP == nil:
		return ""
	case p.Src.Port() != 15008 && p.Dst.Port() != 15008:
		return "tcp"
	case len(p.Payload) == 0 && !p.TCP.SYN:
		return "end of tunnel" // FIN, RST and the acknowledgement of the peer's FIN
	}
	return "tunnel"
}

// kinds counts what was sent since a time.
func (v veth) kinds(since time.Time) map[string]int {
	n := map[string]int{}
	for _, p := range v.Packets() {
		if p.Time.After(since) {
			n[kind(p)]++
		}
	}
	return n
}

// silent wants nothing from the pod since a time but the end of tunnels, and
// of connections that the proxy passed through and that died with it: the
// kernel closes them, without a byte.
func (v veth) silent(t *testing.T, since time.Time) {
	t.Helper()
	packets, err := v.Stop()
	must(t, err)
	open := map[[2]netip.AddrPort]bool{}
	for _, p := range packets {
		if p.TCP != nil && !p.Time.After(since) {
			open[[2]netip.AddrPort{p.Src, p.Dst}] = true
		}
	}
	for _, p := range packets {
		k := kind(p)
		if k == "tcp" && len(p.Payload) == 0 && !p.TCP.SYN && open[[2]netip.AddrPort{p.Src, p.Dst}] {
			continue
		}
		if p.Time.After(since) && k != "" && k != "end of tunnel" {
			t.Errorf("%v after, %s of %s: %v", p.Time.Sub(since), k, v.pod.Name(), p)
		}
	}
}

// lacks wants no packet of the pod's with marker in it.
func (v veth) lacks(t *testing.T, marker []byte) {
	t.Helper()
	for _, p := range v.Packets() {
		if bytes.Contains(p.Data, marker) {
			t.Errorf("%s sent in plaintext: %v", v.pod.Name(), p)
		}
	}
}

// chatter is an application that never gives up: it connects and asks DNS, both
// families, over and over. It ends with stop.
type chatter struct {
	cancel context.CancelFunc
	loops  sync.WaitGroup

	mu   sync.Mutex
	done map[string]int // successes by what was tried; guarded by mu
}

func (w *world) chat(t *testing.T, pod *netlab.Pod) *chatter {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	c := &chatter{cancel: cancel, done: map[string]int{}}
	t.Cleanup(c.stop)
	for _, to := range []netip.AddrPort{w.b.Addr(portEcho), w.b.Addr6(portEcho), at(w.outside.IPv4, portEcho)} {
		c.repeat(ctx, fmt.Sprint("tcp ", to), func() error { return say(ctx, pod, to) })
	}
	for _, server := range w.resolvers {
		c.repeat(ctx, "dns", func() error { return resolve(ctx, pod, at(server, 53)) })
	}
	return c
}

// attempt is how long one may take; many make a test, and hang with the proxy
// gone.
const attempt = 300 * time.Millisecond

func (c *chatter) repeat(ctx context.Context, what string, try func() error) {
	c.loops.Go(func() {
		for ctx.Err() == nil {
			if try() == nil {
				c.mu.Lock()
				c.done[what]++
				c.mu.Unlock()
			}
			select {
			case <-time.After(time.Millisecond): // it may be refused at once
			case <-ctx.Done():
			}
		}
	})
}

// successes are how often each thing has worked.
func (c *chatter) successes() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := map[string]int{}
	for what, done := range c.done {
		n[what] = done
	}
	return n
}

func (c *chatter) stop() {
	c.cancel()
	c.loops.Wait()
}

func say(ctx context.Context, pod *netlab.Pod, to netip.AddrPort) error {
	ctx, cancel := context.WithTimeout(ctx, attempt)
	defer cancel()
	conn, err := pod.Dial(ctx, "tcp", to.String())
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(attempt))
	if _, err := conn.Write([]byte("hello")); err != nil {
		return err
	}
	_, err = conn.Read(make([]byte, 1))
	return err
}

func resolve(ctx context.Context, pod *netlab.Pod, server netip.AddrPort) error {
	conn, err := pod.Dial(ctx, "udp", server.String())
	if err != nil {
		return err
	}
	defer conn.Close()
	client := &dns.Client{Timeout: attempt}
	_, _, err = client.ExchangeWithConnContext(ctx, new(dns.Msg).SetQuestion(dns.Fqdn(serviceName), dns.TypeA), &dns.Conn{Conn: conn})
	return err
}

// SPDX-License-Identifier: Apache-2.0

package app

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/ztunnel-go/ztunnel/dnsproxy"
	"github.com/ztunnel-go/ztunnel/internal/logs"
	"github.com/ztunnel-go/ztunnel/internal/metrics"
	"github.com/ztunnel-go/ztunnel/test/leak"
)

// nameserver answers every A with one address, for a minute, and counts.
func nameserver(t *testing.T, ip string) (at netip.AddrPort, asked *atomic.Int64) {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	asked = new(atomic.Int64)
	started, ended := make(chan struct{}), make(chan struct{})
	s := &dns.Server{PacketConn: pc, NotifyStartedFunc: func() { close(started) }, Handler: dns.HandlerFunc(
		func(w dns.ResponseWriter, q *dns.Msg) {
			asked.Add(1)
			m := new(dns.Msg).SetReply(q)
			if q.Question[0].Qtype == dns.TypeA {
				m.Answer = []dns.RR{&dns.A{A: net.ParseIP(ip), Hdr: dns.RR_Header{
					Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60,
				}}}
			}
			w.WriteMsg(m)
		})}
	go func() { // ends with Shutdown
		defer close(ended)
		s.ActivateAndServe()
	}()
	<-started
	t.Cleanup(func() { s.Shutdown(); <-ended })
	return pc.LocalAddr().(*net.UDPAddr).AddrPort(), asked
}

// writeWhole writes a file in one step.
func writeWhole(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// A resolving is a node of which the resolver has been built.
type resolving struct {
	*node
	t    *testing.T
	out  output
	path string
}

func startResolver(t *testing.T, text string) *resolving {
	t.Helper()
	r := &resolving{t: t, path: filepath.Join(t.TempDir(), "resolv.conf")}
	writeWhole(t, r.path, text)
	vars := variables(t)
	vars["RESOLV_CONF"], vars["IPV6_ENABLED"] = r.path, "false"
	log, err := logs.New(logs.Config{Output: &r.out})
	if err != nil {
		t.Fatal(err)
	}
	if err := log.Close(); err != nil { // which ends buffering
		t.Fatal(err)
	}
	r.node = &node{nodeParams: nodeParams{cfg: load(t, vars), log: log}, logger: log.Logger(), registry: metrics.New("test")}
	r.dnsMetrics = dnsproxy.NewMetrics(r.registry.Registerer())
	if err := r.buildResolver(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.node.close)
	return r
}

func (r *resolving) lookup(name string) string {
	addrs, asked, err := r.lookups.Addresses(r.t.Context(), name)
	return fmt.Sprint(addrs, asked, err)
}

func (r *resolving) await(what string, ok func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("waited for %s in vain:\n%s", what, r.out.String())
		}
	}
}

func (r *resolving) scrape() string {
	var b strings.Builder
	if err := r.registry.Expose(&b); err != nil {
		r.t.Fatal(err)
	}
	return b.String()
}

func TestHostsOfWorkloadsAreAskedForOnceForAllPods(t *testing.T) {
	leak.Check(t)
	at, asked := nameserver(t, "192.0.2.1")
	r := startResolver(t, fmt.Sprintf("nameserver [127.0.0.1]:%d\n", at.Port()))
	for i, want := range []string{"[192.0.2.1] true <nil>", "[192.0.2.1] false <nil>", "[192.0.2.1] false <nil>"} {
		if got := r.lookup("db.example.org"); got != want {
			t.Errorf("lookup %d: %s, want %s", i, got, want)
		}
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("the nameserver was asked %d times", n)
	}
}

// TestResolvConfIsFollowed changes the file to another nameserver, to nonsense,
// to nothing, and back.
func TestResolvConfIsFollowed(t *testing.T) {
	leak.Check(t)
	one, _ := nameserver(t, "192.0.2.1")
	two, _ := nameserver(t, "192.0.2.2")
	conf := func(at netip.AddrPort) string { return fmt.Sprintf("nameserver [127.0.0.1]:%d\n", at.Port()) }
	r := startResolver(t, conf(one))
	if got := r.lookup("db.example.org"); got != "[192.0.2.1] true <nil>" {
		t.Fatal(got)
	}
	writeWhole(t, r.path, conf(two))
	r.await("the second nameserver", func() bool { return strings.HasPrefix(r.lookup("db.example.org"), "[192.0.2.2]") })
	for _, bad := range []struct{ text, told string }{
		{"nameserver nowhere\n", `line 1: nameserver \"nowhere\" is not an address`},
		{"", "no nameserver line"},
		{strings.Repeat("#", maxResolvConf+1), "is larger than 65536 bytes"},
	} {
		writeWhole(t, r.path, bad.text)
		r.await(bad.told, func() bool {
			return strings.Contains(strings.ReplaceAll(r.out.String(), `\\`, ``), bad.told) ||
				strings.Contains(r.out.String(), strings.ReplaceAll(bad.told, `\`, ``))
		})
	}
	if err := os.Remove(r.path); err != nil {
		t.Fatal(err)
	}
	r.await("the loss of the file", func() bool { return strings.Contains(r.out.String(), "no such file") })
	if got := r.lookup("db.example.org"); got != "[192.0.2.2] false <nil>" {
		t.Errorf("with a bad file: %s", got)
	}
	writeWhole(t, r.path, conf(one))
	r.await("the first nameserver", func() bool { return strings.HasPrefix(r.lookup("db.example.org"), "[192.0.2.1]") })
	for _, line := range []string{
		`ztunnel_resolv_conf_changes_total{result="taken"} 2`, `ztunnel_resolv_conf_changes_total{result="refused"} 4`,
	} {
		r.await(line, func() bool { return strings.Contains(r.scrape(), line+"\n") })
	}
}

// SPDX-License-Identifier: Apache-2.0

package istiod

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/test/netlab"
)

// TestOutages takes parts of the control plane away. Certificates are due for
// renewal about 15 s after they were issued: istiod dates them two minutes
// back, and half of what is between the dates is when.
func TestOutages(t *testing.T) {
	w := newWorld(t, "ebpf", map[string]string{"SECRET_TTL": "150s"})
	reaches(t, w.a.Host, at(vipB, viaHTTP), "b", w.a.IPv4)
	t.Run("istiod restarts while connections are made and a renewal is due", w.restart)
	t.Run("the token has expired", w.expiredToken)
	t.Run("the authority is down, then back", w.authorityDown)
}

func (w *world) restart(t *testing.T) {
	before, due := w.certificate(t, w.a)
	l := startLoad(w.a.Host, at(vipB, viaEcho), w.b.Addr(portEcho), at(vipB6, viaEcho))
	w.istiod.stop()
	for time.Now().Before(due.Add(time.Second)) { // a second for the attempt that fails
		time.Sleep(100 * time.Millisecond)
	}
	if serial, _ := w.certificate(t, w.a); serial != before {
		t.Error("the certificate was renewed without an authority")
	}
	w.istiod.start()
	eventually(t, func() error {
		if serial, _ := w.certificate(t, w.a); serial == before {
			return errors.New("the certificate has not been renewed")
		}
		return nil
	})
	w.hears(t, w.p1, w.p2)
	count, failures := l.stop()
	if len(failures) > 0 {
		t.Errorf("%d of %d connections failed, the first with %v", len(failures), count, failures[0])
	}
	t.Logf("%d connections", count)
}

// certificate is the serial number of a pod's certificate, and when it is due
// for renewal.
func (w *world) certificate(t *testing.T, p *pod) (serial string, due time.Time) {
	t.Helper()
	d, text, err := w.dump(p.member.Proxy)
	must(t, err)
	for _, c := range d.Certificates {
		if c.Identity != "spiffe://"+p.identity() || len(c.CertChain) == 0 {
			continue
		}
		from, err1 := time.Parse(time.RFC3339, c.CertChain[0].ValidFrom)
		to, err2 := time.Parse(time.RFC3339, c.CertChain[0].ExpirationTime)
		must(t, errors.Join(err1, err2))
		return c.CertChain[0].SerialNumber, from.Add(to.Sub(from) / 2)
	}
	t.Fatalf("no certificate of %s in %.4000s", p.identity(), text)
	return "", time.Time{}
}

// hears waits until proxies have learned something that istiod is told now.
func (w *world) hears(t *testing.T, proxies ...*member) {
	t.Helper()
	name := fmt.Sprintf("news-%d", time.Now().UnixNano())
	w.istiod.during(t, policyYAML(name, "other", "", "DENY", "cluster.local/ns/no/sa/one"))
	for _, p := range proxies {
		must(t, p.AwaitPage(w.patience(), dumpPage, name))
	}
}

// expiredToken has the proxy of node1 with a token that nobody takes any more.
func (w *world) expiredToken(t *testing.T) {
	w.p1.renew(t, -time.Hour)
	since := w.p1.Output.Mark()
	w.istiod.stop()
	w.istiod.start()
	w.logged(t, w.p1, since, "warn", "xds", "authentication failure")

	late := w.add(w.p1, podSpec{name: "untrusted", namespace: "default"})
	// What is known goes on; a newcomer has neither certificate nor workload.
	must(t, talk(w.a.Host, at(vipB, viaEcho)))
	if talk(late.Host, at(vipB, viaEcho)) == nil {
		t.Error("a pod without a certificate reaches b")
	}
	w.p1.renew(t, time.Hour)
	w.hears(t, w.p1)
	eventually(t, func() error { return talk(late.Host, at(vipB, viaEcho)) })
	w.remove(t, late)
}

func (w *world) authorityDown(t *testing.T) {
	w.authority.cut()
	since := w.p1.Output.Mark()
	late := w.add(w.p1, podSpec{name: "uncertified", namespace: "default"})
	w.logged(t, w.p1, since, "warn", "certificate fetch failed")
	if talk(late.Host, at(vipB, viaEcho)) == nil {
		t.Error("a pod without a certificate reaches b")
	}
	must(t, talk(w.a.Host, at(vipB, viaEcho)))

	w.authority.mend()
	eventually(t, func() error { return talk(late.Host, at(vipB, viaEcho)) })
	w.remove(t, late)
}

// A load makes 50 connections a second, each of one word and back.
type load struct {
	quit    chan struct{}
	talkers sync.WaitGroup

	mu       sync.Mutex
	count    int     // guarded by mu
	failures []error // guarded by mu
}

func startLoad(from *netlab.Host, to ...netip.AddrPort) *load {
	l := &load{quit: make(chan struct{})}
	l.talkers.Go(func() {
		const pace = time.Second / 50
		tick := time.NewTicker(pace)
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-tick.C:
			case <-l.quit:
				return
			}
			l.talkers.Go(func() { l.talk(from, to[i%len(to)]) })
		}
	})
	return l
}

func (l *load) talk(from *netlab.Host, to netip.AddrPort) {
	err := talk(from, to)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.count++
	if err != nil {
		l.failures = append(l.failures, err)
	}
}

// stop waits for the last connections and says how many there were, and what
// became of those that failed.
func (l *load) stop() (count int, failures []error) {
	close(l.quit)
	l.talkers.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.count, l.failures
}

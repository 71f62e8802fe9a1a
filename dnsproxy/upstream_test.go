// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

// memory is a Dial to servers in memory, for virtual time. Each query takes
// the time that delay says; a negative one is silence.
type memory struct {
	delay  func(server netip.AddrPort) time.Duration
	answer func(q *dns.Msg) *dns.Msg
	asked  sync.Map // netip.AddrPort to *atomic.Int64
	work   sync.WaitGroup
}

func (m *memory) count(server netip.AddrPort) *atomic.Int64 {
	n, _ := m.asked.LoadOrStore(server, new(atomic.Int64))
	return n.(*atomic.Int64)
}

func (m *memory) dial(_ context.Context, _ string, server netip.AddrPort) (net.Conn, error) {
	ours, theirs := net.Pipe()
	m.work.Go(func() {
		defer theirs.Close()
		buf := make([]byte, 4096)
		n, err := theirs.Read(buf)
		if err != nil {
			return
		}
		m.count(server).Add(1)
		q := new(dns.Msg)
		if err := q.Unpack(buf[:n]); err != nil {
			return
		}
		d := m.delay(server)
		if d < 0 {
			theirs.Read(buf) // until the client is gone
			return
		}
		time.Sleep(d)
		b, _ := m.answer(q).Pack()
		theirs.Write(b)
		theirs.Read(buf)
	})
	return ours, nil
}

func servers(n int) []netip.AddrPort {
	var out []netip.AddrPort
	for i := range n {
		out = append(out, netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), 53))
	}
	return out
}

func TestSilenceTakesAttemptsTimesTimeout(t *testing.T) {
	for n := range 4 {
		synctest.Test(t, func(t *testing.T) {
			m := &memory{delay: func(netip.AddrPort) time.Duration { return -1 }}
			f := NewForwarder(ForwarderConfig{Upstream: Upstream{Nameservers: servers(n + 1)}, Dial: m.dial})
			begun := time.Now()
			_, err := f.Ask(context.Background(), askFor("www.example.org."))
			if took := time.Since(begun); took != 10*time.Second || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%d servers: %v after %v", n+1, err, took)
			}
			for _, s := range servers(n + 1) {
				if asked := m.count(s).Load(); asked != 2 {
					t.Errorf("%v was asked %d times", s, asked)
				}
			}
			f.Close()
			m.work.Wait()
		})
	}
}

func TestTheQuickServersAreAskedFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := servers(3)
		m := &memory{
			delay: func(s netip.AddrPort) time.Duration {
				return map[netip.AddrPort]time.Duration{all[0]: -1, all[1]: 40 * time.Millisecond, all[2]: 4 * time.Millisecond}[s]
			},
			answer: func(q *dns.Msg) *dns.Msg {
				return answerWith(q, dns.RcodeSuccess, q.Question[0].Name+" 300 IN A 192.0.2.1")
			},
		}
		f := NewForwarder(ForwarderConfig{Upstream: Upstream{Nameservers: all}, Dial: m.dial})
		for i := range 100 {
			if _, err := f.Ask(context.Background(), askFor(fmt.Sprintf("n%d.example.org.", i))); err != nil {
				t.Fatal(err)
			}
		}
		if n := m.count(all[2]).Load(); n < 95 {
			t.Errorf("the quickest was asked %d times of 100", n)
		}
		f.Close()
		m.work.Wait()
	})
}

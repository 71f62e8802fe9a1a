// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
	"github.com/ztunnel-go/ztunnel/test/leak"
)

func forwarder(t *testing.T, cfg ForwarderConfig) *Forwarder {
	t.Helper()
	if cfg.Dial == nil {
		cfg.Dial = dial
	}
	f := NewForwarder(cfg)
	t.Cleanup(f.Close)
	return f
}

func askFor(name string) dns.Question {
	return dns.Question{Name: name, Qtype: dns.TypeA, Qclass: dns.ClassINET}
}

// told is the outcome of a question in one line.
func told(m *dns.Msg, err error) string {
	if err != nil {
		return err.Error()
	}
	return show(m)
}

const good = "NOERROR www.example.org./A/192.0.2.1"

// saying is an upstream that answers all with one code and nothing else.
func saying(t *testing.T, rcode int) *upstreamServer {
	return fakeUpstream(t, func(q *dns.Msg, _ bool) *dns.Msg { return answerWith(q, rcode) })
}

func TestForwardedAnswersAreMadeAnew(t *testing.T) {
	leak.Check(t)
	r := start(t, Config{Upstream: fakeUpstream(t, world).config()})
	for _, protocol := range []string{"udp", "tcp"} {
		m := r.ask(protocol, question("Alias.Example.org", dns.TypeA))
		want := "NOERROR ra alias.example.org./CNAME/two.example.org. two.example.org./CNAME/www.example.org. www.example.org./A/192.0.2.1"
		if show(m) != want {
			t.Errorf("%s: %s", protocol, show(m))
		}
		if len(m.Ns) != 0 || len(m.Extra) != 1 || m.Extra[0].Header().Name != "ns.example.org." {
			t.Errorf("%s: authority %v, additional %v", protocol, m.Ns, m.Extra)
		}
		if m.Question[0].Name != "Alias.Example.org." {
			t.Errorf("%s: question %v", protocol, m.Question)
		}
	}
}

func TestFailuresOfUpstream(t *testing.T) {
	leak.Check(t)
	up := fakeUpstream(t, world).addr
	servfail, refused := saying(t, dns.RcodeServerFailure).addr, saying(t, dns.RcodeRefused).addr
	nobody := rawUpstream(t, nil)
	silent := fakeUpstream(t, func(*dns.Msg, bool) *dns.Msg { return nil }).addr
	cut := fakeUpstream(t, func(q *dns.Msg, tcp bool) *dns.Msg {
		m := answerWith(q, dns.RcodeSuccess)
		m.Truncated = true
		return m
	}).addr
	bare := rawUpstream(t, func(q []byte) [][]byte {
		return [][]byte{{q[0], q[1], 0x81, 0x85, 0, 0, 0, 0, 0, 0, 0, 0}} // REFUSED, a header alone
	})
	for about, c := range map[string]struct {
		servers []netip.AddrPort
		want    string
	}{
		"SERVFAIL":                           {[]netip.AddrPort{servfail}, fmt.Sprintf("ask %v: answered SERVFAIL", servfail)},
		"REFUSED":                            {[]netip.AddrPort{refused}, fmt.Sprintf("ask %v: answered REFUSED", refused)},
		"REFUSED without question":           {[]netip.AddrPort{bare}, fmt.Sprintf("ask %v: answered REFUSED", bare)},
		"truncated by TCP":                   {[]netip.AddrPort{cut}, fmt.Sprintf("ask %v: truncated even by TCP", cut)},
		"silence":                            {[]netip.AddrPort{silent}, fmt.Sprintf("ask %v: context deadline exceeded", silent)},
		"nobody there":                       {[]netip.AddrPort{nobody}, "connection refused"},
		"no servers":                         {nil, ErrNoNameservers.Error()},
		"one of two silent":                  {[]netip.AddrPort{silent, up}, good},
		"one of two fails":                   {[]netip.AddrPort{servfail, up}, good},
		"third is asked when two fail":       {[]netip.AddrPort{servfail, refused, up}, good},
		"third is asked when two are silent": {[]netip.AddrPort{silent, silent, up}, good},
	} {
		t.Run(about, func(t *testing.T) {
			f := forwarder(t, ForwarderConfig{Upstream: Upstream{Nameservers: c.servers, Timeout: 200 * time.Millisecond}})
			if got := told(f.Ask(t.Context(), askFor("www.example.org."))); !strings.HasSuffix(got, c.want) {
				t.Errorf("got %s, want %s", got, c.want)
			}
			r := start(t, Config{Upstream: Upstream{Nameservers: c.servers, Timeout: 200 * time.Millisecond}})
			want := "SERVFAIL"
			if c.want == good {
				want = "NOERROR ra www.example.org./A/192.0.2.1"
			}
			if got := show(r.ask("udp", question("www.example.org", dns.TypeA))); got != want {
				t.Errorf("client got %s, want %s", got, want)
			}
		})
	}
}

func TestTheSameQuestionIsAskedOnce(t *testing.T) {
	leak.Check(t)
	release := make(chan struct{})
	up := fakeUpstream(t, func(q *dns.Msg, tcp bool) *dns.Msg {
		<-release
		return world(q, tcp)
	})
	f := forwarder(t, ForwarderConfig{Upstream: Upstream{Nameservers: []netip.AddrPort{up.addr}}})
	answers := make(chan string)
	for range 20 {
		go func() { answers <- told(f.Ask(context.Background(), askFor("www.example.org."))) }()
	}
	poll(t, func() bool { return f.busy() == 20 && up.udp.Load() == 1 })
	close(release)
	for range 20 {
		if got := <-answers; got != good {
			t.Error(got)
		}
	}
	if n := up.udp.Load(); n != 1 {
		t.Errorf("asked %d times", n)
	}
}

func TestAnswersAreKeptForTheirTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{
			delay: func(netip.AddrPort) time.Duration { return 0 },
			answer: func(q *dns.Msg) *dns.Msg {
				a := world(q, false)
				if q.Question[0].Name == "alias.example.org." {
					a.Answer[1].Header().Ttl = 20
				}
				return a
			},
		}
		up := servers(1)
		f := NewForwarder(ForwarderConfig{Upstream: Upstream{Nameservers: up}, Dial: m.dial})
		defer m.work.Wait()
		defer f.Close()
		for _, step := range []struct {
			wait  time.Duration
			name  string
			want  string
			asked int64
		}{
			{0, "alias.example.org.", "300 20 300", 1},
			{19500 * time.Millisecond, "ALIAS.example.org.", "281 1 281", 1},
			{500 * time.Millisecond, "alias.example.org.", "300 20 300", 2},
			{0, "nowhere.example.org.", "no such domain: nowhere.example.org.", 3},
			{29 * time.Second, "nowhere.example.org.", "no such domain: nowhere.example.org.", 3}, // SOA: 30 s
			{time.Second, "nowhere.example.org.", "no such domain: nowhere.example.org.", 4},
		} {
			time.Sleep(step.wait)
			got, err := f.Ask(context.Background(), askFor(step.name))
			var ttls []string
			if err != nil {
				ttls = append(ttls, err.Error())
			} else {
				for _, rr := range got.Answer {
					ttls = append(ttls, fmt.Sprint(rr.Header().Ttl))
				}
			}
			if have := strings.Join(ttls, " "); have != step.want || m.count(up[0]).Load() != step.asked {
				t.Errorf("%s after %v: %s, asked %d times; want %+v", step.name, step.wait, have, m.count(up[0]).Load(), step)
			}
		}
	})
}

// TestPodsShareNoAnswers has two pods ask the same, of which one may not know
// what the other was told.
func TestPodsShareNoAnswers(t *testing.T) {
	leak.Check(t)
	up := fakeUpstream(t, world)
	source := NewSource(ResolvConf{Nameservers: []netip.AddrPort{up.addr}, Timeout: 20 * time.Second, Attempts: 1})
	for pod := range 2 {
		r := start(t, Config{Source: source})
		for range 3 {
			if got := show(r.ask("udp", question("www.example.org", dns.TypeA))); got != "NOERROR ra www.example.org./A/192.0.2.1" {
				t.Error(got)
			}
		}
		if n := up.udp.Load(); n != int64(pod+1) {
			t.Errorf("after pod %d upstream was asked %d times", pod+1, n)
		}
	}
	none := start(t, Config{Source: source, Cache: -1})
	for range 3 {
		none.ask("udp", question("www.example.org", dns.TypeA))
	}
	if n := up.udp.Load(); n != 5 {
		t.Errorf("without a cache upstream was asked %d times, want 5", n)
	}
}

func TestQueriesInFlightAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{delay: func(netip.AddrPort) time.Duration { return -1 }}
		s := New(Config{
			View: oneName().View(), Client: knownClient,
			Upstream: Upstream{Nameservers: servers(1)}, Dial: m.dial,
		})
		var callers sync.WaitGroup
		for i := range maxForwarded {
			callers.Go(func() {
				b, _ := question(fmt.Sprintf("n%d.example.org", i/2), dns.TypeA).Pack()
				s.handle(s.ctx, b, "udp")
			})
		}
		synctest.Wait()
		for name, want := range map[string]string{
			"n0.example.org": "SERVFAIL", "new.example.org": "SERVFAIL", // the limit is on callers
			"a": "NOERROR aa ra a./A/1.1.1.1",
		} {
			b, _ := question(name, dns.TypeA).Pack()
			got := new(dns.Msg)
			if err := got.Unpack(s.handle(s.ctx, b, "udp")); err != nil || show(got) != want {
				t.Errorf("%s: %s, %v", name, show(got), err)
			}
		}
		if _, err := s.forward.Ask(context.Background(), askFor("x.example.org.")); !errors.Is(err, ErrBusy) {
			t.Error(err)
		}
		callers.Wait() // in virtual time
		if n := s.forward.busy(); n != 0 {
			t.Errorf("%d are waiting still", n)
		}
		s.Close()
		m.work.Wait()
	})
}

func TestCloseEndsQuestions(t *testing.T) {
	leak.Check(t)
	silent := fakeUpstream(t, func(*dns.Msg, bool) *dns.Msg { return nil })
	f := forwarder(t, ForwarderConfig{Upstream: Upstream{Nameservers: []netip.AddrPort{silent.addr}, Timeout: time.Minute}})
	ctx, cancel := context.WithCancelCause(context.Background())
	answers := make(chan error, 2)
	go func() {
		_, err := f.Ask(context.Background(), askFor("www.example.org."))
		answers <- err
	}()
	go func() {
		_, err := f.Ask(ctx, askFor("www.example.org."))
		answers <- err
	}()
	poll(t, func() bool { return f.busy() == 2 })
	cancel(errUnknownClient)
	if err := <-answers; !errors.Is(err, errUnknownClient) {
		t.Errorf("the one who gave up: %v", err)
	}
	f.Close()
	if err := <-answers; err == nil {
		t.Error("an answer came out of a closed forwarder")
	}
	if _, err := f.Ask(context.Background(), askFor("www.example.org.")); !errors.Is(err, errClosed) {
		t.Errorf("asked after Close: %v", err)
	}
}

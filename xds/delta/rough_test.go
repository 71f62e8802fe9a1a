// SPDX-License-Identifier: Apache-2.0

package delta

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/ztunnel-go/ztunnel/test/fakeistiod"
	"github.com/ztunnel-go/ztunnel/test/leak"
	"github.com/ztunnel-go/ztunnel/xds/pb/discoverypb"
)

// Whatever byte a connection breaks at, the next one brings everything.
func TestAStreamCutAtAnyPoint(t *testing.T) {
	leak.Check(t)
	payload := strings.Repeat("x", 600)
	// Handshake and settings are some 1,500 bytes, the push as many.
	for cut := 0; cut < 4000; cut += 131 {
		srv := fakeistiod.Start(t, fakeistiod.Options{})
		srv.World.Put(res(addresses, "a", payload), res(addresses, "b", payload), res(policies, "p", payload))
		srv.CutAfter(cut)
		g := start(t, srv, nil)
		eventually(t, fmt.Sprintf("everything, after a cut at %d", cut), func() bool {
			return g.has("a", payload) && g.has("b", payload) && g.has("p", payload) && g.isReady()
		})
		g.Close()
		srv.Stop()
	}
}

func TestASlowStream(t *testing.T) {
	leak.Check(t)
	srv := fakeistiod.Start(t, fakeistiod.Options{})
	srv.Slow(100, time.Millisecond)
	payload := strings.Repeat("x", 10_000)
	srv.World.Put(res(addresses, "a", payload))
	g := start(t, srv, nil)
	eventually(t, "everything", func() bool { return g.has("a", payload) && g.isReady() })
}

// Nonces mean nothing to us: each response is answered with its own.
func TestNoncesAreEchoedHoweverStale(t *testing.T) {
	leak.Check(t)
	nonces := []string{"2", "1", "1", "", strings.Repeat("n", 5000)}
	answered := make(chan string, len(nonces))
	srv := fakeistiod.Start(t, fakeistiod.Options{Script: func(st *fakeistiod.Stream) error {
		if err := st.Greet(); err != nil {
			return err
		}
		for i, n := range nonces {
			a, err := st.Push(n, []fakeistiod.Resource{res(addresses, "a", fmt.Sprint(i))})
			if err != nil {
				return err
			}
			answered <- a.GetResponseNonce()
		}
		<-st.Done()
		return nil
	}})
	g := start(t, srv, nil)
	for _, n := range nonces {
		if got := <-answered; got != n {
			t.Errorf("answered %q to %q", got, n)
		}
	}
	if !g.has("a", "4") {
		t.Error("the last push did not count")
	}
}

func TestResponsesThatHoldNothing(t *testing.T) {
	leak.Check(t)
	done := make(chan struct{})
	srv := fakeistiod.Start(t, fakeistiod.Options{Script: func(st *fakeistiod.Stream) error {
		if err := st.Greet(); err != nil {
			return err
		}
		for _, r := range []*discoverypb.DeltaDiscoveryResponse{
			{}, {TypeUrl: addresses}, {TypeUrl: addresses, Resources: []*discoverypb.Resource{{}}},
			{TypeUrl: addresses, RemovedResources: []string{"", "never/there"}},
		} {
			if _, err := st.Exchange(r); err != nil {
				return err
			}
		}
		close(done)
		<-st.Done()
		return nil
	}})
	start(t, srv, nil)
	<-done
}

// A message larger than the limit ends the stream, and nothing else.
func TestAMessageAboveTheLimit(t *testing.T) {
	if testing.Short() {
		t.Skip("sends 200 MiB")
	}
	leak.Check(t)
	srv := fakeistiod.Start(t, fakeistiod.Options{Script: func(st *fakeistiod.Stream) error {
		if err := st.Greet(); err != nil {
			return err
		}
		if st.Number == 1 {
			_, err := st.Push("1", []fakeistiod.Resource{{Type: addresses, Name: "a", Payload: make([]byte, MaxMessage)}})
			return err
		}
		for i, url := range []string{addresses, policies} {
			if _, err := st.Push(fmt.Sprint(i), []fakeistiod.Resource{res(url, "b", "1")}); err != nil {
				return err
			}
		}
		<-st.Done()
		return nil
	}})
	g := start(t, srv, nil)
	eventually(t, "ready", g.isReady)
	if g.counts.ended(Error) != 1 || !g.log.has("ResourceExhausted") {
		t.Errorf("endings %v, log %s", g.counts.endings, g.log.String())
	}
}

func sample() []byte {
	b, _ := proto.Marshal(fakeistiod.Response(addresses, "n", []fakeistiod.Resource{
		{Name: "a", Version: "v", Aliases: []string{"x", "y"}, Payload: []byte("payload"), Type: addresses},
		{Name: "b", Version: "v", Bare: true},
	}, "c", "d"))
	return b
}

// The decoder of our own says what protobuf's says.
func checkDecode(t *testing.T, b []byte) {
	t.Helper()
	var r response
	var want discoverypb.DeltaDiscoveryResponse
	ours, theirs := r.decode(b), proto.Unmarshal(b, &want)
	if theirs != nil {
		return // it looks deeper: into what we do not read
	}
	if ours != nil {
		t.Fatalf("refused %x: %v", b, ours)
	}
	if r.typeURL != want.GetTypeUrl() || r.nonce != want.GetNonce() || len(r.resources) != len(want.GetResources()) ||
		strings.Join(r.removed, ",") != strings.Join(want.GetRemovedResources(), ",") {
		t.Fatalf("%x: %+v, want %v", b, r, &want)
	}
	for i, w := range want.GetResources() {
		got := r.resources[i]
		if got.Name != w.GetName() || got.Version != w.GetVersion() || got.HasPayload != (w.GetResource() != nil) ||
			string(got.Payload) != string(w.GetResource().GetValue()) || strings.Join(got.Aliases, ",") != strings.Join(w.GetAliases(), ",") {
			t.Fatalf("%x: resource %d: %+v, want %v", b, i, got, w)
		}
	}
}

func TestEveryPrefixOfAResponse(t *testing.T) {
	b := sample()
	for n := range len(b) + 1 {
		checkDecode(t, b[:n])
	}
}

func FuzzResponse(f *testing.F) {
	f.Add(sample())
	f.Add([]byte{})
	f.Add([]byte{0x12, 0x02, 0x12, 0x00, 0x12, 0x00})
	f.Fuzz(func(t *testing.T, b []byte) { checkDecode(t, b) })
}

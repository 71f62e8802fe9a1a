// SPDX-License-Identifier: Apache-2.0

package fakeagent

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"

	"github.com/ztunnel-go/ztunnel/internal/netns"
	"github.com/ztunnel-go/ztunnel/internal/zds"
	"github.com/ztunnel-go/ztunnel/test/leak"
)

// TestAnAgentTellsItsPods has the proxy's side of the protocol for a peer: it
// refuses the pod "bad".
func TestAnAgentTellsItsPods(t *testing.T) {
	leak.Check(t)
	ns, err := netns.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	path := filepath.Join(t.TempDir(), "s")
	a, err := Start(path, Pod{UID: "bad", Name: "n", NS: ns}, Pod{UID: "kept"})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if err := a.Add(Pod{UID: "early", NS: ns}); err != nil {
		t.Errorf("an add that nobody hears: %v", err)
	}
	if a.Accepted("early") {
		t.Error("nobody has accepted it yet")
	}

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var proxy sync.WaitGroup
	var told []string // read after proxy.Wait
	proxy.Go(func() {
		for ctx.Err() == nil {
			told = append(told, "hello")
			serve(ctx, path, func(r zds.Request) error {
				told = append(told, fmt.Sprint(r.Kind, " ", r.UID))
				if r.NetNS != nil {
					r.NetNS.Close()
				}
				if r.UID == "bad" {
					return errors.New("no")
				}
				return nil
			})
		}
	})
	if err := a.AwaitSnapshots(ctx, 1); err != nil {
		t.Fatal(err)
	}
	if !a.Accepted("early") || a.Accepted("bad") || a.Accepted("nobody") {
		t.Error("who was accepted is not known")
	}
	a.Forget("kept")
	if err := a.Del("bad"); err == nil || err.Error() != "no" {
		t.Errorf("del: %v", err)
	}
	a.Disconnect()
	if err := a.AwaitSnapshots(ctx, 2); err != nil {
		t.Fatal(err)
	}
	if err := a.Add(Pod{UID: "late", NS: ns}); err != nil {
		t.Error(err)
	}
	cancel()
	proxy.Wait()
	want := fmt.Sprint([]string{"hello", "add bad", "keep kept", "add early", "snapshot sent ", "del bad", "hello", "add early", "snapshot sent ", "add late"})
	if got := fmt.Sprint(told); got != want {
		t.Errorf("told %v\nwant %v", got, want)
	}
	if first := a.Answers()[0]; first.Request != "add" || first.UID != "bad" || first.Err == nil {
		t.Errorf("first answer %+v", first)
	}
}

func serve(ctx context.Context, path string, handle func(zds.Request) error) {
	s, err := zds.Dial(ctx, path)
	if err != nil {
		return
	}
	defer s.Close()
	for {
		r, err := s.Next(ctx)
		if err != nil {
			return
		}
		if s.Ack(handle(r)) != nil {
			return
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

package roster

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/internal/netns"
	"github.com/ztunnel-go/ztunnel/internal/zds"
	"github.com/ztunnel-go/ztunnel/test/leak"
	"github.com/ztunnel-go/ztunnel/test/privileged"
)

const patience = 20 * time.Second

// listening is a roster that runs for the time of a test.
func listening(t *testing.T) *Roster {
	t.Helper()
	leak.Check(t)
	r := New(Config{Socket: filepath.Join(t.TempDir(), "s")})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := r.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); running.Wait(); r.Close() })
	return r
}

// A proxy says no to pods in refuse.
type proxy struct {
	t      *testing.T
	cancel context.CancelFunc
	done   sync.WaitGroup

	mu     sync.Mutex
	told   []string
	refuse map[string]bool
}

func connect(t *testing.T, r *Roster, refuse ...string) *proxy {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	p := &proxy{t: t, cancel: cancel, refuse: map[string]bool{}}
	for _, uid := range refuse {
		p.refuse[uid] = true
	}
	var s *zds.Session
	eventually(t, func() (err error) {
		s, err = zds.Dial(ctx, r.cfg.Socket)
		return err
	})
	p.done.Go(func() {
		defer s.Close()
		for {
			req, err := s.Next(ctx)
			if err != nil {
				return
			}
			if s.Ack(p.handle(req)) != nil {
				return
			}
		}
	})
	t.Cleanup(p.leave)
	return p
}

func (p *proxy) handle(req zds.Request) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	text := strings.TrimSpace(fmt.Sprint(req.Kind, " ", req.UID))
	if req.NetNS != nil {
		text += fmt.Sprint(" ", req.NetNS.ID().Ino)
		req.NetNS.Close()
	}
	p.told = append(p.told, text)
	if req.Kind == zds.Add && p.refuse[req.UID] {
		return errors.New("no")
	}
	return nil
}

func (p *proxy) leave() { p.cancel(); p.done.Wait() }

func (p *proxy) pardon(uid string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.refuse, uid)
}

func (p *proxy) heard() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.told)
}

// hears waits until the proxy has been told so, and of nothing else.
func (p *proxy) hears(want ...string) {
	p.t.Helper()
	eventually(p.t, func() error {
		if got := p.heard(); !slices.Equal(got, want) {
			return fmt.Errorf("told %q, want %q", got, want)
		}
		return nil
	})
}

func eventually(t *testing.T, fn func() error) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		err := fn()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// pod is one with the test's own namespace, or a new one.
func pod(t *testing.T, uid string) Pod {
	t.Helper()
	ns, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	return Pod{UID: uid, Name: uid, Namespace: "ns", ServiceAccount: "sa", NS: ns}
}

func await(t *testing.T, r *Roster, uid string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	return r.Await(ctx, uid)
}

func TestAProxyIsToldTheListAndWhatChanges(t *testing.T) {
	r := listening(t)
	a := pod(t, "a")
	add := fmt.Sprint("add a ", a.NS.ID().Ino)
	r.Set(a)
	p := connect(t, r)
	if err := await(t, r, "a"); err != nil {
		t.Fatal(err)
	}
	p.hears(add, "snapshot sent")
	r.Set(pod(t, "a")) // it is served already
	r.Set(pod(t, "b"))
	if err := await(t, r, "b"); err != nil {
		t.Fatal(err)
	}
	r.Drop("a")
	p.hears(add, "snapshot sent", strings.Replace(add, " a ", " b ", 1), "del a")
	if _, ok := r.Get("a"); ok || len(r.All()) != 1 {
		t.Errorf("the list is %v", r.All())
	}
	if err := await(t, r, "a"); !errors.Is(err, errNotListed) {
		t.Errorf("waiting for a pod that was dropped: %v", err)
	}
	if n := r.Counts()[Count{"add", "accepted"}]; n != 2 {
		t.Errorf("%d adds were counted", n)
	}
}

func TestAProxyThatComesBackIsToldAgain(t *testing.T) {
	r := listening(t)
	r.Set(pod(t, "a"))
	p := connect(t, r)
	if err := await(t, r, "a"); err != nil {
		t.Fatal(err)
	}
	p.leave()
	eventually(t, func() error {
		if s, _ := r.Get("a"); s.State != Waiting {
			return fmt.Errorf("without a proxy the pod is %s", s.State)
		}
		return nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := r.Await(ctx, "a"); !errors.Is(err, errNoProxy) {
		t.Errorf("without a proxy: %v", err)
	}
	r.Drop("never")
	p = connect(t, r)
	if err := await(t, r, "a"); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if got := p.heard(); len(got) != 3 || got[1] != "snapshot sent" || got[2] != "del never" {
			return fmt.Errorf("told %q", got)
		}
		return nil
	})
}

func TestARefusedPodIsToldAgainWhenAsked(t *testing.T) {
	r := listening(t)
	changed := make(chan string, 10)
	r.cfg.Changed = func(uid string) { changed <- uid }
	p := connect(t, r, "a")
	r.Set(pod(t, "a"))
	var refused *zds.Refused
	if err := await(t, r, "a"); !errors.As(err, &refused) || refused.Text != "no" {
		t.Fatalf("a refusal is %v", err)
	}
	select {
	case uid := <-changed:
		if s, _ := r.Get(uid); s.State != Refused || s.Err == nil {
			t.Errorf("%+v", s)
		}
	case <-time.After(patience):
		t.Error("nobody was told")
	}
	p.pardon("a")
	r.Again("a")
	if err := await(t, r, "a"); err != nil {
		t.Error(err)
	}
}

func TestOfTwoProxiesTheYoungerIsToldWhatComesAndBothWhatGoes(t *testing.T) {
	r := listening(t)
	r.Set(pod(t, "a"))
	older := connect(t, r)
	older.hears(fmt.Sprint("add a ", inode(t)), "snapshot sent")
	younger := connect(t, r)
	younger.hears(fmt.Sprint("add a ", inode(t)), "snapshot sent")
	r.Set(pod(t, "b"))
	if err := await(t, r, "b"); err != nil {
		t.Fatal(err)
	}
	r.Drop("a")
	younger.hears(fmt.Sprint("add a ", inode(t)), "snapshot sent", fmt.Sprint("add b ", inode(t)), "del a")
	older.hears(fmt.Sprint("add a ", inode(t)), "snapshot sent", "del a")
	younger.leave() // an upgrade that was taken back
	older.hears(fmt.Sprint("add a ", inode(t)), "snapshot sent", "del a", fmt.Sprint("add b ", inode(t)))
	if err := await(t, r, "b"); err != nil {
		t.Error(err)
	}
}

func inode(t *testing.T) uint64 {
	t.Helper()
	ns, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	return ns.ID().Ino
}

func TestAPodWithoutItsNamespaceIsKeptInSnapshotsOnly(t *testing.T) {
	r := listening(t)
	r.Set(Pod{UID: "k"})
	p := connect(t, r)
	p.hears("keep k", "snapshot sent")
	r.Set(Pod{UID: "l"})
	r.Set(pod(t, "k"))
	if err := await(t, r, "k"); err != nil {
		t.Fatal(err)
	}
	p.hears("keep k", "snapshot sent", fmt.Sprint("add k ", inode(t)))
	if s, _ := r.Get("l"); s.State != Unknown {
		t.Errorf("%+v", s)
	}
}

func TestAPodWithANewNamespaceIsToldAgain(t *testing.T) {
	privileged.Need(t)
	r := listening(t)
	p := connect(t, r)
	p.hears("snapshot sent")
	first := pod(t, "a")
	first.Sandbox = "one"
	r.Set(first)
	if err := await(t, r, "a"); err != nil {
		t.Fatal(err)
	}
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	ino := ns.ID().Ino
	r.Set(Pod{UID: "a", NS: ns, Sandbox: "two"})
	if err := await(t, r, "a"); err != nil {
		t.Fatal(err)
	}
	p.hears("snapshot sent", fmt.Sprint("add a ", inode(t)), fmt.Sprint("add a ", ino))
	if r.Leave("a", "one") {
		t.Error("the end of the first sandbox ended the second")
	}
	if uid, ok := r.Owner(netns.ID{}); ok {
		t.Errorf("%s owns nothing", uid)
	}
	if !r.Leave("a", "two") {
		t.Error("the pod stays")
	}
}

// SPDX-License-Identifier: Apache-2.0

package zds

import (
	"bytes"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/internal/netns"
	"github.com/ztunnel-go/ztunnel/test/leak"
)

// greeted is an agent's peer and the proxy's session on the other end.
func greeted(t *testing.T) (*Peer, *Session) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s, err := Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	p, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close(); s.Close() })
	if err := p.Hello(); err != nil {
		t.Fatal(err)
	}
	return p, s
}

func TestTheTwoEndsUnderstandEachOther(t *testing.T) {
	leak.Check(t)
	p, s := greeted(t)
	own, err := netns.Open(ownNetNS)
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	for _, want := range []Request{
		{Kind: Add, UID: "u", Info: &Info{"pod", "ns", "sa"}, NetNS: own},
		{Kind: Add, UID: "l", Info: &Info{"late", "ns", "sa"}, NetNS: own, Late: true},
		{Kind: Keep, UID: "k"}, {Kind: SnapshotSent}, {Kind: Del, UID: "u"},
	} {
		asked := make(chan error, 1)
		go func() { asked <- p.Ask(want) }()
		got, err := s.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got.Kind != want.Kind || got.UID != want.UID || got.Late != want.Late {
			t.Errorf("%+v came as %+v", want, got)
		}
		if want.Info != nil && *got.Info != *want.Info {
			t.Errorf("%+v came as %+v", want.Info, got.Info)
		}
		if want.NetNS != nil {
			if got.NetNS.ID() != own.ID() {
				t.Error("another namespace came")
			}
			got.NetNS.Close()
		}
		if err := s.Ack(nil); err != nil {
			t.Fatal(err)
		}
		if err := <-asked; err != nil {
			t.Errorf("%v: %v", want.Kind, err)
		}
	}
}

func TestARefusalIsToldFromAnEnd(t *testing.T) {
	leak.Check(t)
	p, s := greeted(t)
	asked := make(chan error, 1)
	go func() { asked <- p.Ask(Request{Kind: Del, UID: "u"}) }()
	if _, err := s.Next(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Ack(errors.New("no")); err != nil {
		t.Fatal(err)
	}
	var refused *Refused
	if err := <-asked; !errors.As(err, &refused) || refused.Text != "no" {
		t.Errorf("a refusal is %v", err)
	}
	s.Close()
	select {
	case <-p.Gone():
	case <-time.After(10 * time.Second):
		t.Fatal("the end was not seen")
	}
	if err := p.Ask(Request{Kind: SnapshotSent}); err == nil || errors.As(err, &refused) && refused.Text != "no" {
		t.Errorf("after the end: %v", err)
	}
}

func TestNonsenseFromAProxyIsAnError(t *testing.T) {
	for _, tc := range []struct {
		name, want string
		packets    [][]byte // the first for the greeting
	}{
		{"another version", "it speaks version 7", [][]byte{{8, 7}}},
		{"no protobuf", "cannot parse", [][]byte{{0xff}}},
		{"an answer without ack", "it has no ack", [][]byte{{8, 1}, {0x7a, 0}}},
		{"a long answer", "longer than 1024", [][]byte{{8, 1}, bytes.Repeat([]byte{0x7a, 0}, 600)}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			leak.Check(t)
			path := filepath.Join(t.TempDir(), "s")
			l, err := Listen(path)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Net: "unixpacket", Name: path})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			p, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			for _, b := range tc.packets {
				if _, err := c.Write(b); err != nil {
					t.Fatal(err)
				}
			}
			if err = p.Hello(); err == nil {
				err = p.Ask(Request{Kind: SnapshotSent})
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, want %q", err, tc.want)
			}
		})
	}
}

func TestTheAgentsSocketIsForRootAndReplacesAnOldOne(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(t.TempDir(), "s")
	if err := os.WriteFile(path, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	if _, err := Listen(filepath.Join(path, "below")); err == nil {
		t.Error("listens below a file")
	}
}

func TestARequestThatIsTooLongIsNotSent(t *testing.T) {
	if _, _, err := encode(Request{Kind: Del, UID: strings.Repeat("u", maxRequest)}); err == nil {
		t.Error("it was encoded")
	}
	if _, _, err := encode(Request{Kind: Add, UID: "u"}); err == nil {
		t.Error("an add without a namespace was encoded")
	}
}

// SPDX-License-Identifier: Apache-2.0

package istiod

import (
	"io"
	"net"
	"strconv"
	"sync"
	"testing"

	"github.com/ztunnel-go/ztunnel/test/netlab"
)

// A forwarder is a way to a server on the same node that can be cut.
type forwarder struct {
	t    *testing.T
	node *netlab.Node
	at   int
	to   int

	listener net.Listener
	loops    sync.WaitGroup // end with listener and conns

	mu    sync.Mutex
	conns map[net.Conn]bool // guarded by mu; nil while the way is cut
}

func newForwarder(t *testing.T, node *netlab.Node, at, to int) *forwarder {
	t.Helper()
	f := &forwarder{t: t, node: node, at: at, to: to}
	f.mend()
	t.Cleanup(f.cut)
	return f
}

// mend opens the way, which must not be open.
func (f *forwarder) mend() {
	f.t.Helper()
	l, err := f.node.Listen("tcp", port(f.at))
	must(f.t, err)
	f.listener = l
	f.mu.Lock()
	f.conns = map[net.Conn]bool{}
	f.mu.Unlock()
	f.loops.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			f.loops.Go(func() { f.forward(c) })
		}
	})
}

// cut closes the way and all who are on it.
func (f *forwarder) cut() {
	f.listener.Close()
	f.mu.Lock()
	for c := range f.conns {
		c.Close()
	}
	f.conns = nil
	f.mu.Unlock()
	f.loops.Wait()
}

func (f *forwarder) forward(c net.Conn) {
	defer c.Close()
	up, err := f.node.Dial(f.t.Context(), "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(f.to)))
	if err != nil {
		return
	}
	defer up.Close()
	if !f.hold(c, up) {
		return
	}
	defer f.release(c, up)
	var upstream sync.WaitGroup
	upstream.Go(func() {
		_, _ = io.Copy(up, c)
		up.Close()
	})
	_, _ = io.Copy(c, up)
	c.Close()
	upstream.Wait()
}

// hold enters connections to be closed by cut, unless it has been.
func (f *forwarder) hold(conns ...net.Conn) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.conns == nil {
		return false
	}
	for _, c := range conns {
		f.conns[c] = true
	}
	return true
}

func (f *forwarder) release(conns ...net.Conn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range conns {
		delete(f.conns, c)
	}
}

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/internal/zds/zdspb"
	"github.com/ztunnel-go/ztunnel/test/fakeagent"
	"github.com/ztunnel-go/ztunnel/test/netlab"
	"github.com/ztunnel-go/ztunnel/test/rig"
)

// TestGarbageForTheTunnel sends what is no tunnel to a pod's 15008, before TLS
// and inside it. It is refused and logged, and others are served.
func TestGarbageForTheTunnel(t *testing.T) {
	w := newWorld(t)
	noise := make([]byte, 1<<16)
	for i := range noise {
		noise[i] = byte(rand.Uint32())
	}
	hello := clientHello(t, w)
	for name, b := range map[string][]byte{
		"HTTP/1":           []byte("GET /healthz HTTP/1.1\r\nHost: b\r\n\r\n"),
		"HTTP/2 in clear":  []byte(http2.ClientPreface + "\x00\x00\x00\x04\x00\x00\x00\x00\x00"),
		"noise":            noise,
		"half a handshake": hello[:len(hello)/2],
		"an empty record":  {0x16, 3, 3, 0, 0},
		"a huge record":    append([]byte{0x16, 3, 3, 0xff, 0xff}, noise...),
		"nothing":          nil,
	} {
		t.Run(name, func(t *testing.T) {
			since := w.p2.Output.Mark()
			c := w.dial(t, w.stranger.Host, w.b.Addr(15008))
			_, err := c.Write(b)
			if err == nil {
				err = c.CloseWrite()
			}
			if err != nil && !wasReset(err) && !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ENOTCONN) {
				t.Error(err)
			}
			_, _ = io.Copy(io.Discard, c) // an alert at most, then the end
			w.logged(t, w.p2, since, "\twarn\taccess\tconnection failed", "src.addr="+c.LocalAddr().String(), "tls handshake error")
		})
	}
	bundle := w.certificate(t, rig.DefaultCA, "spiffe://cluster.local/ns/default/sa/stock", 0)
	for name, b := range map[string][]byte{
		"HTTP/1":             []byte("GET / HTTP/1.1\r\nHost: b\r\n\r\n"),
		"noise":              noise,
		"noise in frames":    []byte(http2.ClientPreface + "\x00\x00\x00\x04\x00\x00\x00\x00\x00" + string(frames(200))),
		"a frame too large":  []byte(http2.ClientPreface + "\x00\x00\x00\x04\x00\x00\x00\x00\x00" + "\xff\xff\xff\x00\x00\x00\x00\x00\x01"),
		"data on no stream":  []byte(http2.ClientPreface + "\x00\x00\x00\x04\x00\x00\x00\x00\x00" + "\x00\x00\x01\x00\x00\x00\x00\x00\x01x"),
		"headers in no code": []byte(http2.ClientPreface + "\x00\x00\x00\x04\x00\x00\x00\x00\x00" + "\x00\x00\x02\x01\x04\x00\x00\x00\x01\xff\xff"),
	} {
		t.Run(name+" in TLS", func(t *testing.T) {
			conn, err := handshake(t, w.stranger.Host, w.b.Addr(15008), stock(bundle))
			must(t, err)
			_, _ = conn.Write(b)
			_ = conn.CloseWrite()
			if _, err := io.Copy(io.Discard, conn); isTimeout(err) {
				t.Error("the tunnel stays open")
			}
		})
	}
	if !w.p2.Running() {
		t.Fatal("the proxy has ended")
	}
	must(t, refused(w.a.Host, w.b.Addr(portEcho), []byte("others are served")))
	w.ready(w.p2)
}

// frames are n HTTP/2 frames of random types and contents.
func frames(n int) (b []byte) {
	for range n {
		size := rand.IntN(64)
		b = append(b, 0, 0, byte(size), byte(rand.IntN(12)), byte(rand.Uint32()), 0, 0, 0, byte(rand.IntN(8)))
		for range size {
			b = append(b, byte(rand.Uint32()))
		}
	}
	return b
}

// clientHello is the first flight of a stock client.
func clientHello(t *testing.T, w *world) []byte {
	t.Helper()
	l := listen(t, w.outside.Host, port(9999))
	c := w.dial(t, w.stranger.Host, at(w.outside.IPv4, 9999))
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = tls.Client(c, &tls.Config{InsecureSkipVerify: true}).Handshake()
	}()
	server := l.accept(t)
	b := make([]byte, 4096)
	n, err := server.Read(b)
	must(t, err)
	server.Close()
	<-done
	return b[:n]
}

// TestGarbageFromTheAgent has the node agent say what makes no sense. Each is
// refused, and pods that are served notice nothing.
func TestGarbageFromTheAgent(t *testing.T) {
	w := plan(t)
	w.p2 = w.start(w.n2, rig.Options{})
	w.enrol(w.p2, w.b)
	w.p1 = w.start(w.n1, rig.Options{NoAgent: true})
	agent, err := fakeagent.Listen(w.p1.Socket())
	must(t, err)
	defer agent.Close()
	greet := func() *fakeagent.Conn {
		c, err := agent.Accept(w.patience())
		must(t, err)
		t.Cleanup(func() { c.Close() })
		must(t, c.Add("a", infoOf(w.a), w.a.NS()))
		must(t, c.SnapshotSent())
		return c
	}
	c := greet()
	w.ready(w.p1, w.p2)
	open := w.dial(t, w.a.Host, w.b.Addr(portEcho))
	echo(t, open, []byte("before"))

	null, err := os.Open("/dev/null")
	must(t, err)
	defer null.Close()
	del := []byte("\x12\x03\x12\x01z")
	for name, tc := range map[string]struct {
		data []byte
		fds  []int
		want string
		over bool // of the connection
	}{
		"noise":                {[]byte("\xff\xff\xff\xff noise"), nil, "failure to read message : ", true},
		"no payload":           {[]byte("\x7a\x00"), nil, "failure to read message : ", true},
		"cut short":            {del[:len(del)-1], nil, "failure to read message : ", true},
		"too long":             {append([]byte("\x12\xff\x1f\x12\xfc\x1f"), make([]byte, 4092)...), nil, "failure to read message : ", true},
		"an add without pod":   {[]byte("\x0a\x08\x0a\x01u\x12\x03\x0a\x01p"), nil, "failure to read message : ", true},
		"a del with namespace": {del, []int{int(null.Fd())}, "failure to read message : ", true},
		"two namespaces":       {[]byte("\x0a\x08\x0a\x01u\x12\x03\x0a\x01p"), []int{w.c.NS().Fd(), w.c.NS().Fd()}, "failure to read message : ", true},
		"a file for namespace": {[]byte("\x0a\x08\x0a\x01u\x12\x03\x0a\x01p"), []int{int(null.Fd())}, "failure to start proxy : ", false},
	} {
		t.Run(name, func(t *testing.T) {
			err := c.SendRaw(tc.data, tc.fds...)
			var refused *fakeagent.Refused
			if !errors.As(err, &refused) || !strings.HasPrefix(refused.Text, tc.want) {
				t.Errorf("the answer is %v, want a refusal with %q", err, tc.want)
			}
			if tc.over {
				must(t, c.AwaitClosed())
				c = greet() // it comes back at once
			} else {
				must(t, c.Del("u"))
			}
			echo(t, open, []byte("after "+name))
		})
	}
	w.ready(w.p1)
	must(t, refused(w.a.Host, w.b.Addr(portEcho), []byte("new ones too")))
}

func infoOf(p *netlab.Pod) *zdspb.WorkloadInfo {
	return &zdspb.WorkloadInfo{Name: p.Name(), Namespace: namespaceOf(p), ServiceAccount: p.Name()}
}

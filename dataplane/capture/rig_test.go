// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/test/leak"
	"github.com/ztunnel-go/ztunnel/test/netlab"
)

func TestMain(m *testing.M) {
	netlab.Main()
	if len(os.Args) > 1 && os.Args[1] == childArgument {
		beProxy(os.Args[2:])
	}
	os.Exit(m.Run())
}

// A rig is a node with capture of its own. Pods on it are captured with rig.pod.
type rig struct {
	t    *testing.T
	lab  *netlab.Lab
	host *netlab.Node
	cfg  Config
	node *Node
}

func newRig(t *testing.T, change ...func(*Config)) *rig {
	t.Helper()
	return newRigOn(t, netlab.Config{}, change...)
}

func newRigOn(t *testing.T, on netlab.Config, change ...func(*Config)) *rig {
	t.Helper()
	leak.Check(t)
	lab := netlab.NewTestWith(t, on)
	host, err := lab.Node("node")
	must(t, err)
	r := &rig{t: t, lab: lab, host: host, cfg: Config{
		Mode:        EBPF,
		PinDir:      fmt.Sprintf("/sys/fs/bpf/zttest-%d", os.Getpid()),
		CgroupRoot:  lab.CgroupRoot(),
		HostNetns:   host.Path(),
		IPv6:        true,
		SpoofSource: true,
		DNS:         true,
	}}
	for _, c := range change {
		c(&r.cfg)
	}
	t.Cleanup(func() {
		if err := Cleanup(context.Background(), r.cfg); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(r.cfg.PinDir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("pins are left: %v", err)
		}
	})
	r.open()
	return r
}

func (r *rig) open() {
	r.t.Helper()
	n, err := Open(context.Background(), r.cfg, slog.New(slog.NewTextHandler(testWriter{r.t}, nil)))
	must(r.t, err)
	r.node = n
	r.t.Cleanup(func() { n.Close() })
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// A proxy stands in for the real one: what it accepts it greets with the role
// and the addresses, except plaintext, which it delivers.
type proxy struct {
	*Pod
	t     *testing.T
	loops sync.WaitGroup

	mu    sync.Mutex
	conns []net.Conn
}

// capture adds the pod, serves it and enables it.
func (r *rig) capture(pod *netlab.Pod) *proxy {
	r.t.Helper()
	p := r.add(pod)
	must(r.t, p.Enable(context.Background()))
	return p
}

func (r *rig) add(pod *netlab.Pod) *proxy {
	r.t.Helper()
	return r.addAs(pod, PodInfo{UID: pod.Name(), Name: pod.Name(), Namespace: "test"})
}

func (r *rig) addAs(pod *netlab.Pod, info PodInfo) *proxy {
	r.t.Helper()
	captured, err := r.node.Add(context.Background(), info, pod.NS())
	must(r.t, err)
	p := &proxy{Pod: captured, t: r.t}
	p.serve()
	r.t.Cleanup(p.stopServing)
	return p
}

func (p *proxy) serve() {
	for role := range roles {
		l := p.Listener(role)
		p.loops.Go(func() {
			for {
				c, err := l.Accept()
				if errors.Is(err, net.ErrClosed) {
					return
				}
				if err == nil {
					p.keep(c.TCPConn)
					p.loops.Go(func() { p.handle(role, c) })
				}
			}
		})
	}
	for _, pc := range p.DNSPacketConns() {
		p.loops.Go(func() {
			b := make([]byte, 512)
			for {
				n, addr, err := pc.ReadFrom(b)
				if err != nil {
					return
				}
				client := addr.(interface{ AddrPort() netip.AddrPort }).AddrPort()
				pc.WriteTo(fmt.Appendf(nil, "dns %s %v", b[:n], client.Addr()), addr)
			}
		})
	}
	for _, l := range p.DNSListeners() {
		p.loops.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				fmt.Fprintf(c, "dns-tcp %v\n", c.LocalAddr())
				c.Close()
			}
		})
	}
}

func (p *proxy) keep(c net.Conn) {
	p.mu.Lock()
	p.conns = append(p.conns, c)
	p.mu.Unlock()
}

func (p *proxy) handle(role Role, c *Conn) {
	if role != Plaintext {
		fmt.Fprintf(c, "%v dst=%v peer=%v\n", role, c.Dst, c.Peer.Addr())
		io.Copy(c, c) // echo until the end
		c.Close()
		return
	}
	up, err := p.Deliver(context.Background(), c.Peer.Addr(), c.Dst)
	if err != nil {
		c.SetLinger(0)
		c.Close()
		return
	}
	p.keep(up)
	fmt.Fprintf(c, "%v dst=%v peer=%v\n", role, c.Dst, c.Peer.Addr())
	p.loops.Go(func() { io.Copy(up, c); up.CloseWrite() })
	io.Copy(c, up)
	c.Close()
	up.Close()
}

func (p *proxy) closeConns() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		c.Close()
	}
	p.conns = nil
}

// stopServing is what a proxy does at its end: capture stays.
func (p *proxy) stopServing() {
	if err := p.Release(); err != nil {
		p.t.Error(err)
	}
	p.closeConns()
	p.loops.Wait()
}

// ask connects from a host, sends what, and gives the first line and the rest
// of what comes back within a second.
func ask(h *netlab.Host, addr, what string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	c, err := h.Dial(ctx, "tcp", addr)
	if err != nil {
		return "", err
	}
	defer c.Close()
	return talk(c, what)
}

func talk(c net.Conn, what string) (string, error) {
	c.SetDeadline(time.Now().Add(3 * time.Second))
	if _, err := io.WriteString(c, what); err != nil {
		return "", err
	}
	if tcp, ok := c.(*net.TCPConn); ok {
		tcp.CloseWrite()
	}
	b, err := io.ReadAll(c)
	return string(b), err
}

// app listens in a pod, and answers each connection with its peer's address.
func app(t *testing.T, h *netlab.Host, addr string) net.Listener {
	t.Helper()
	l, err := h.Listen("tcp", addr)
	must(t, err)
	var loops sync.WaitGroup
	loops.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			loops.Go(func() {
				defer c.Close()
				host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
				fmt.Fprintf(c, "app from=%s\n", host)
				c.SetDeadline(time.Now().Add(5 * time.Second))
				io.Copy(c, c)
			})
		}
	})
	t.Cleanup(func() { l.Close(); loops.Wait() })
	return l
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (r *rig) pod(name string) *netlab.Pod {
	r.t.Helper()
	p, err := r.host.Pod(name)
	must(r.t, err)
	return p
}

// count is the value of a counter of the node.
func (r *rig) count(hook, reason string) uint64 {
	for _, c := range r.node.Counters() {
		if c.Hook == hook && c.Reason == reason {
			return c.Value
		}
	}
	r.t.Errorf("no counter %s %s", hook, reason)
	return 0
}

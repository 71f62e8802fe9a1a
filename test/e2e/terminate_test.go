// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/internal/sock"
	"github.com/ztunnel-go/ztunnel/test/netlab"
	"github.com/ztunnel-go/ztunnel/test/netlab/serve"
	"github.com/ztunnel-go/ztunnel/test/rig"
)

// What becomes of connections as their pod ends: its application closes its
// listener, the node agent deletes it, its link goes.

// portApp is where applications listen that tests play themselves.
const portApp = 6000

// eachCapture runs a test for both ways of capture, each in a world that is
// planned and not up yet.
func eachCapture(t *testing.T, test func(t *testing.T, w *world, o rig.Options)) {
	t.Run("ebpf", func(t *testing.T) {
		test(t, plan(t), rig.Options{Env: map[string]string{"CAPTURE": "ebpf"}})
	})
	t.Run("istio-cni", func(t *testing.T) {
		w := plan(t)
		for _, pod := range []*netlab.Pod{w.a, w.b, w.c} {
			redirect(t, pod, rig.IstioCNI)
		}
		test(t, w, rig.Options{Env: map[string]string{"CAPTURE": "istio-cni"}})
	})
}

// tunnelsTo counts the tunnels that a pod has to another, in whatever state.
func tunnelsTo(from, to *netlab.Pod) (n int, err error) {
	err = from.Do(func() error {
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			sockets, err := netlink.SocketDiagTCP(family)
			if err != nil {
				return err
			}
			for _, s := range sockets {
				dst, _ := netip.AddrFromSlice(s.ID.Destination)
				if s.State == netlink.TCP_ESTABLISHED && s.ID.DestinationPort == 15008 && dst.Unmap() == to.IPv4 {
					n++
				}
			}
		}
		return nil
	})
	return n, err
}

// tunnels waits until a pod has so many tunnels to another.
func (w *world) tunnels(t *testing.T, from, to *netlab.Pod, want int) {
	t.Helper()
	w.eventually(t, func() error {
		n, err := tunnelsTo(from, to)
		if err == nil && n != want {
			err = fmt.Errorf("%s has %d tunnels to %s, want %d", from.Name(), n, to.Name(), want)
		}
		return err
	})
}

// unlink deletes a pod's link, as a CNI does.
func unlink(pod *netlab.Pod) error {
	return pod.Node().Do(func() error {
		link, err := netlink.LinkByName(pod.VethName)
		if err != nil {
			return err
		}
		return netlink.LinkDel(link)
	})
}

// TestTheLastListenerGoes closes the only listener of a pod under a connection
// that goes on, first one from before the enrolment, then one from after it.
// Peers leave the tunnels that they have, find others when the application is
// back, and keep none to a pod where nobody answers.
func TestTheLastListenerGoes(t *testing.T) {
	eachCapture(t, func(t *testing.T, w *world, o rig.Options) {
		app := listen(t, w.c.Host, port(portApp))
		o.Env["RUST_LOG"] = "info,ztunnel::capture=debug"
		w.up(o)
		for _, which := range []string{"from before the enrolment", "from after it"} {
			open := w.dial(t, w.b.Host, w.c.Addr(portApp))
			_, err := open.Write([]byte("hello"))
			must(t, err)
			served := app.accept(t)
			w.tunnels(t, w.b, w.c, 1)

			since := w.p1.Output.Mark()
			must(t, app.Close())
			w.logged(t, w.p1, since, "no application of a pod listens any more", `pod="other/c"`)
			for range 3 { // the last ones on a new tunnel, and left at once
				if err := refused(w.b.Host, w.c.Addr(portApp), []byte("x")); err == nil {
					t.Error("somebody answers")
				}
			}
			w.tunnels(t, w.b, w.c, 1)
			talk(t, open, served)

			app = listen(t, w.c.Host, port(portApp))
			next := w.dial(t, w.b.Host, w.c.Addr(portApp))
			_, err = next.Write([]byte("hello"))
			must(t, err)
			nextServed := app.accept(t)
			talk(t, next, nextServed)
			w.tunnels(t, w.b, w.c, 2)
			talk(t, open, served)
			if t.Failed() {
				t.Fatalf("with the listener %s", which)
			}
			for _, c := range []*net.TCPConn{open, next, served, nextServed} {
				must(t, c.Close())
			}
			w.tunnels(t, w.b, w.c, 1) // the old one is gone with its last stream
		}
		must(t, app.Close())
		w.tunnels(t, w.b, w.c, 0)
	})
}

// talk wants what one side says to arrive at the other, both ways. What the
// server has not read before is let be.
func talk(t *testing.T, client, server *net.TCPConn) {
	t.Helper()
	for _, way := range [][2]*net.TCPConn{{client, server}, {server, client}} {
		said := newMarker()
		_, err := way[0].Write(said)
		must(t, err)
		var heard []byte
		b := make([]byte, len(said))
		for !bytes.HasSuffix(heard, said) {
			n, err := way[1].Read(b)
			must(t, err)
			heard = append(heard, b[:n]...)
		}
	}
}

// An echoer answers in a pod until it is told to end: it closes its listener
// and goes on with the connections that it has.
type echoer struct {
	l     net.Listener
	conns sync.WaitGroup
}

func startEchoer(t *testing.T, h *netlab.Host, at string) *echoer {
	t.Helper()
	l, err := h.Listen("tcp", at)
	must(t, err)
	e := &echoer{l: l}
	e.conns.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			e.conns.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(patience))
				// No splice, whose pipes are kept; whoever asks notices errors.
				_, _ = io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		e.conns.Wait()
	})
	return e
}

// TestABackendTerminates ends one of a service's two backends under new
// connections, in the order of Kubernetes, with the control plane the last to
// tell. Nobody who connects notices.
func TestABackendTerminates(t *testing.T) {
	eachCapture(t, func(t *testing.T, w *world, o rig.Options) {
		vip := netip.MustParseAddr("10.96.0.2")
		service := (&rig.Service{Name: "db", Namespace: "default", Hostname: "db.default.svc.cluster.local",
			VIPs: []string{"/" + vip.String()}, Ports: map[uint16]uint16{7: portApp}}).Join(w.wa, w.wc)
		w.state.Services = append(w.state.Services, service)
		must(t, w.mesh.SetState(w.state))
		w.serve(w.a.Host, serve.Options{Echo: port(portApp)})
		app := startEchoer(t, w.c.Host, port(portApp))
		w.up(o)

		var result tally
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		var running sync.WaitGroup
		running.Go(func() {
			load{"to the service", 10 * time.Millisecond, func() error { return talks(w.b.Host, at(vip, 7)) }}.run(ctx, &result)
		})
		attempts := func(more int) {
			t.Helper()
			result.mu.Lock()
			enough := result.attempts + more
			result.mu.Unlock()
			w.eventually(t, func() error {
				result.mu.Lock()
				defer result.mu.Unlock()
				if result.attempts < enough {
					return errors.New("it gets no further")
				}
				return nil
			})
		}
		attempts(100)
		w.tunnels(t, w.b, w.c, 1)
		must(t, app.l.Close())
		attempts(100)
		app.conns.Wait() // the application exits
		w.tunnels(t, w.b, w.c, 0)
		must(t, w.p1.Agent.Del("c"))
		attempts(50)
		delete(w.wc.Services, "default/db.default.svc.cluster.local")
		must(t, w.mesh.Apply(w.patience(), w.state))
		must(t, unlink(w.c))
		attempts(100)
		stop()
		running.Wait()
		t.Logf("%v", &result)
		for _, failure := range result.failures {
			t.Error(failure)
		}
	})
}

// TestDelLetsConnectionsFinish deletes a pod with transfers under way in both
// directions. They finish with all their bytes; what does not is ended at the
// deadline, and told to be.
func TestDelLetsConnectionsFinish(t *testing.T) {
	eachCapture(t, func(t *testing.T, w *world, o rig.Options) {
		o.Env["CONNECTION_TERMINATION_DEADLINE"] = "8s"
		w.serve(w.c.Host, serve.Options{Source: port(portSource)})
		w.up(o)
		const size = 16 << 20
		in, out := w.dial(t, w.b.Host, w.c.Addr(portSource)), w.dial(t, w.c.Host, w.b.Addr(portSink))
		_, err := fmt.Fprintln(in, size)
		must(t, err)
		first := make([]byte, 1<<10)
		_, err = io.ReadFull(in, first) // it runs, and soon waits for us
		must(t, err)
		half := serve.Pattern(size)
		_, err = io.CopyN(out, half, size/2)
		must(t, err)
		idle := w.dial(t, w.c.Host, w.b.Addr(portEcho))
		echo(t, idle, []byte("hello"))

		since := w.p1.Output.Mark()
		began := time.Now()
		must(t, w.p1.Agent.Del("c"))
		_, err = io.Copy(out, half)
		must(t, errors.Join(err, out.CloseWrite()))
		line, err := io.ReadAll(out)
		if want := fmt.Sprintf("%d %s\n", size, serve.PatternSum(size)); err != nil || string(line) != want {
			t.Errorf("the sink said %q, %v; want %q", line, err, want)
		}
		rest, err := io.ReadAll(in)
		want, _ := io.ReadAll(serve.Pattern(size))
		if err != nil || !bytes.Equal(append(first, rest...), want) {
			t.Errorf("the source gave %d bytes, %v", len(first)+len(rest), err)
		}
		if err := ended(idle); isTimeout(err) {
			t.Error("an idle connection lives on")
		} else if took := time.Since(began); took < 4*time.Second {
			t.Errorf("it ended with %v after %v", err, took)
		}
		w.logged(t, w.p1, since, "error\taccess\tconnection complete", `src.workload="c"`, `error="connection closed due to connection drain"`)
		w.tunnels(t, w.c, w.b, 0)
	})
}

// TestDelWithoutConnectionsIsOverAtOnce deletes a pod whose tunnels are idle.
// Nobody waits, and neither side keeps one.
func TestDelWithoutConnectionsIsOverAtOnce(t *testing.T) {
	eachCapture(t, func(t *testing.T, w *world, o rig.Options) {
		o.Env["CONNECTION_TERMINATION_DEADLINE"] = "60s"
		startEchoer(t, w.c.Host, port(portApp))
		w.up(o)
		must(t, talks(w.b.Host, w.c.Addr(portApp)))
		must(t, talks(w.c.Host, w.b.Addr(portEcho)))
		w.tunnels(t, w.b, w.c, 1)
		w.tunnels(t, w.c, w.b, 1)
		must(t, w.p1.Agent.Del("c"))
		w.tunnels(t, w.b, w.c, 0)
		w.tunnels(t, w.c, w.b, 0)
		w.eventually(t, func() error {
			if state, there := w.pods(t, w.p1)["c"]; there {
				return errors.New("its state is " + state.State)
			}
			return nil
		})
	})
}

// TestTheLinkGoes takes a pod's link under connections of all kinds. What has
// arrived is delivered, and all end at once, and say why.
func TestTheLinkGoes(t *testing.T) {
	eachCapture(t, func(t *testing.T, w *world, o rig.Options) {
		o.Env["RUST_LOG"] = "info,ztunnel::capture=debug"
		w.up(o)
		app := listen(t, w.c.Host, port(portApp))
		remote := listen(t, w.outside.Host, port(portApp))
		peers, ours := map[string]*net.TCPConn{}, map[string]*net.TCPConn{}
		for kind, from := range map[string]*netlab.Host{"tunnelled": w.b.Host, "plain": w.stranger.Host} {
			peers[kind] = w.dial(t, from, w.c.Addr(portApp))
			_, err := peers[kind].Write([]byte("hello"))
			must(t, err)
			ours[kind] = app.accept(t)
			talk(t, peers[kind], ours[kind])
		}
		ours["out of the mesh"] = w.dial(t, w.c.Host, at(w.outside.IPv4, portApp))
		peers["out of the mesh"] = remote.accept(t)
		talk(t, ours["out of the mesh"], peers["out of the mesh"])
		ours["into the mesh"] = w.dial(t, w.c.Host, w.b.Addr(portEcho))
		echo(t, ours["into the mesh"], []byte("hello"))

		since := w.p1.Output.Mark()
		began := time.Now()
		must(t, unlink(w.c))
		for kind, c := range ours {
			if err := ended(c); isTimeout(err) {
				t.Errorf("%s: it lives on", kind)
			}
		}
		t.Logf("all had ended after %v", time.Since(began))
		for range ours {
			w.logged(t, w.p1, since, "error\taccess\tconnection complete", `error="connection closed: the pod's network is gone"`)
		}
		must(t, w.p1.Agent.Del("c"))
		w.eventually(t, func() error {
			if state, there := w.pods(t, w.p1)["c"]; there {
				return errors.New("its state is " + state.State)
			}
			return nil
		})
		w.ready(w.p1)
	})
}

// TestWhatHasArrivedIsDeliveredWithoutALink takes the link of a pod whose
// application reads slower than its peer writes. It gets what the proxy has.
func TestWhatHasArrivedIsDeliveredWithoutALink(t *testing.T) {
	w := newWorld(t)
	app := listen(t, w.c.Host, port(portApp))
	peer := w.dial(t, w.b.Host, w.c.Addr(portApp))
	var writing sync.WaitGroup
	defer writing.Wait()
	const plenty = 64 << 20
	writing.Go(func() {
		_, _ = io.Copy(peer, serve.Pattern(plenty)) // it is to break
	})
	served := app.accept(t)
	queued := func() (n int) {
		must(t, sock.Control(served, func(fd int) (err error) {
			n, err = unix.IoctlGetInt(fd, unix.SIOCINQ)
			return err
		}))
		return n
	}
	for last := -1; last != queued() || last == 0; time.Sleep(500 * time.Millisecond) {
		last = queued() // until nothing moves
	}
	must(t, unlink(w.c))
	full := queued()
	got, err := io.ReadAll(served)
	t.Logf("%d bytes had been delivered; %d were read, then %v", full, len(got), err)
	if len(got) <= full || isTimeout(err) || err == nil {
		t.Errorf("%d of more than %d bytes were read, then %v", len(got), full, err)
	}
	want, _ := io.ReadAll(io.LimitReader(serve.Pattern(plenty), int64(len(got))))
	if !bytes.Equal(got, want) {
		t.Error("other bytes were read than written")
	}
	must(t, peer.Close())
}

// TestLastWords has applications say their last and go, with the agent's delete
// right behind, and the link's end after a while. What they said arrives, if
// the while is long enough for a proxy to pass it on; if it is not, nobody
// takes a part for the whole.
func TestLastWords(t *testing.T) {
	eachCapture(t, func(t *testing.T, w *world, o rig.Options) {
		delays := []time.Duration{0, time.Millisecond, 5 * time.Millisecond, 20 * time.Millisecond, time.Second}
		var pods []*netlab.Pod
		for i := range delays {
			pod := w.pod(w.n1, fmt.Sprintf("brief%d", i))
			if o.Env["CAPTURE"] == "istio-cni" {
				redirect(t, pod, rig.IstioCNI)
			}
			pods = append(pods, pod)
			w.state.Workloads = append(w.state.Workloads, rig.WorkloadOf(pod, "default"))
		}
		must(t, w.mesh.SetState(w.state))
		w.up(o)
		w.enrol(w.p1, pods...)
		server := listen(t, w.b.Host, port(portApp))
		for i, pod := range pods {
			app := listen(t, pod.Host, port(portApp))
			asks := w.dial(t, w.b.Host, pod.Addr(portApp))
			_, err := asks.Write([]byte("well?"))
			must(t, err)
			answers := app.accept(t)
			says := w.dial(t, pod.Host, w.b.Addr(portApp))
			hears := server.accept(t)
			words := make([]byte, 256<<10)
			rand.Read(words) // never fails since Go 1.24
			_, err = io.ReadFull(answers, make([]byte, len("well?")))
			must(t, err)

			for _, c := range []*net.TCPConn{answers, says} {
				_, err := c.Write(words)
				must(t, errors.Join(err, c.Close()))
			}
			must(t, app.Close())
			must(t, w.p1.Agent.Del(pod.Name()))
			time.Sleep(delays[i])
			must(t, unlink(pod))
			for what, c := range map[string]*net.TCPConn{"answer": asks, "said": hears} {
				const little = 2 * time.Second
				_ = c.SetReadDeadline(time.Now().Add(little)) // whoever has heard nothing waits for a PING
				if delays[i] >= time.Second {
					_ = c.SetReadDeadline(time.Now().Add(patience))
				}
				heard, err := io.ReadAll(c)
				whole := err == nil && bytes.Equal(heard, words)
				t.Logf("link gone after %v: %s: %d of %d bytes, %v", delays[i], what, len(heard), len(words), err)
				if err == nil && !whole {
					t.Errorf("%v: %s: %d of %d bytes pass for all", delays[i], what, len(heard), len(words))
				}
				if !whole && delays[i] >= time.Second {
					t.Errorf("%v: %s: %d bytes, %v", delays[i], what, len(heard), err)
				}
			}
		}
	})
}

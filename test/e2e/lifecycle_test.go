// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/test/fakeagent"
	"github.com/ztunnel-go/ztunnel/test/netlab"
	"github.com/ztunnel-go/ztunnel/test/netlab/serve"
	"github.com/ztunnel-go/ztunnel/test/rig"
)

// TestDelEndsConnections un-enrols pods with connections open, on both sides of
// them. They end, and what applications send on them afterwards goes nowhere.
func TestDelEndsConnections(t *testing.T) {
	w := newWorld(t)
	links := []veth{record(t, w.a), record(t, w.c)}
	app := listen(t, w.c.Host, port(6000))
	open := func(from *netlab.Host, to netip.AddrPort) (client, server *net.TCPConn) {
		client = w.dial(t, from, to)
		_, err := client.Write([]byte("hello"))
		must(t, err)
		server = app.accept(t)
		_, err = io.ReadFull(server, make([]byte, len("hello")))
		must(t, err)
		return client, server
	}
	mesh := w.dial(t, w.a.Host, w.b.Addr(portEcho))
	echo(t, mesh, []byte("hello"))
	direct, meshServer := open(w.a.Host, w.c.Addr6(6000))
	plain, plainServer := open(w.stranger.Host, w.c.Addr(6000))

	must(t, w.p1.Agent.Del("a"))
	must(t, w.p1.Agent.Del("c"))
	// What the stranger is sent before its connection ends is in plaintext
	// rightly, but then the stranger gets it: an escaped packet it would refuse.
	marker, toStranger := newMarker(), newMarker()
	_, _ = plainServer.Write(toStranger)
	for name, c := range map[string]*net.TCPConn{
		"client to mesh": mesh, "client to the same node": direct, "server of the mesh": meshServer, "server of a stranger": plainServer,
	} {
		// First the write: it is what would escape, if the socket lived on.
		if c != plainServer {
			_, _ = c.Write(marker)
		}
		if err := ended(c); err == nil || errors.Is(err, syscall.ETIMEDOUT) || isTimeout(err) {
			t.Errorf("%s: %v, want an end", name, err)
		}
		_, _ = c.Write(marker)
	}
	_ = plain.SetReadDeadline(time.Now().Add(patience))
	got, err := io.ReadAll(plain)
	if isTimeout(err) {
		t.Errorf("the stranger's connection: %v, want an end", err)
	}
	w.eventually(t, func() error { // which is when all marks are gone
		if n := len(podPins(t, w.p1)); n != 0 {
			return errors.New("pods are still pinned")
		}
		return nil
	})
	w.ready(w.p1)
	for _, link := range links {
		link.lacks(t, marker)
		if !bytes.Contains(got, toStranger) {
			link.lacks(t, toStranger)
		}
		if rules := w.traces(t, link.pod); len(rules) > 0 {
			t.Errorf("left in %s: %q", link.pod.Name(), rules)
		}
	}
	// From now on they are pods like any other.
	since := time.Now()
	if saw := get(t, w.a.Host, w.b.Addr(portHTTP)); saw.Server != "b" {
		t.Errorf("an un-enrolled pod: %+v", saw)
	}
	if n := links[0].kinds(since); n["tcp"] == 0 || n["tunnel"] > 0 {
		t.Errorf("an un-enrolled pod sent %v", n)
	}
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

// TestKill kills the proxy under the applications that use it. For five seconds
// nothing gets out of the pod, and when the proxy is back all goes on.
func TestKill(t *testing.T) {
	w := plan(t)
	w.serve(w.outside.Host, serve.Options{Echo: port(portEcho)})
	link := record(t, w.a)
	before := w.chat(t, w.a) // nobody captures it yet; nobody resolves, either
	w.eventually(t, func() error {
		if n := link.kinds(time.Time{}); n["tcp"] == 0 || n["dns"] == 0 {
			return errors.New("the recorder does not see the pod's traffic")
		}
		return nil
	})
	before.stop()
	w.up()

	open := w.dial(t, w.a.Host, w.b.Addr(portEcho))
	echo(t, open, []byte("before"))
	chat := w.chat(t, w.a)
	w.eventually(t, func() error {
		if done := chat.successes(); len(done) != 4 { // two tunnels, one passthrough, DNS
			return errors.New("not everything works")
		}
		return nil
	})
	must(t, w.p1.Kill())
	killed := time.Now()
	// Whoever is connecting now gets through when the proxy is back.
	waiting := make(chan error, 1)
	go func() { waiting <- refused(w.a.Host, w.b.Addr(portEcho), []byte("patient")) }()
	if err := ended(open); !wasReset(err) && !errors.Is(err, io.EOF) {
		t.Errorf("an open connection saw %v", err)
	}
	old := chat.successes()
	const outage = 5 * time.Second // the issue's
	time.Sleep(time.Until(killed.Add(outage)))
	link.silent(t, killed)

	must(t, w.p1.Restart())
	w.ready(w.p1)
	w.eventually(t, func() error {
		for what, n := range chat.successes() {
			if n <= old[what]+1 { // one may have been under way
				return errors.New(what + " does not work again")
			}
		}
		return nil
	})
	must(t, <-waiting)
	if n := w.p1.Agent.Snapshots(); n != 2 {
		t.Errorf("%d snapshots were taken, want one for each process", n)
	}
}

// TestAgentRestart ends the agent's connection under a transfer, which notices
// nothing.
func TestAgentRestart(t *testing.T) {
	w := newWorld(t)
	open := w.dial(t, w.a.Host, w.b.Addr(portEcho))
	echo(t, open, []byte("before"))
	transfer := w.dial(t, w.a.Host, w.b.Addr6(portSink))
	sent := make(chan error, 1)
	release := make(chan struct{})
	go func() { // half before, half after
		_, err := transfer.Write(make([]byte, 1<<20))
		<-release
		if err == nil {
			_, err = transfer.Write(make([]byte, 1<<20))
		}
		sent <- errors.Join(err, transfer.CloseWrite())
	}()
	since := w.p1.Output.Mark()
	for range 3 {
		n := w.p1.Agent.Snapshots()
		w.p1.Agent.Disconnect()
		must(t, w.p1.Agent.AwaitSnapshots(w.patience(), n+1))
	}
	close(release)
	must(t, <-sent)
	line, err := io.ReadAll(transfer)
	if err != nil || !strings.HasPrefix(string(line), "2097152 ") {
		t.Errorf("the sink said %q, %v", line, err)
	}
	echo(t, open, []byte("after"))
	w.ready(w.p1)
	w.logged(t, w.p1, since, "process stream ended with eof")
	for _, answer := range w.p1.Agent.Answers() {
		if answer.Err != nil {
			t.Errorf("%s %s: %v", answer.Request, answer.UID, answer.Err)
		}
	}
}

// TestAgentForgets leaves a pod out of a snapshot. It is parked: nobody serves
// it, and nothing gets out of it, until the agent names it again.
func TestAgentForgets(t *testing.T) {
	w := newWorld(t)
	link := record(t, w.a)
	open := w.dial(t, w.a.Host, w.b.Addr(portEcho))
	echo(t, open, []byte("before"))

	n := w.p1.Agent.Snapshots()
	w.p1.Agent.Forget("a")
	w.p1.Agent.Disconnect()
	must(t, w.p1.Agent.AwaitSnapshots(w.patience(), n+1))
	if err := ended(open); isTimeout(err) {
		t.Error("its connection lives on")
	}
	w.eventually(t, func() error {
		if state := w.pods(t, w.p1)["a"].State; state != "Parked" {
			return errors.New("its state is " + state)
		}
		return nil
	})
	parked := time.Now()
	chat := w.chat(t, w.a)
	waiting := make(chan error, 1)
	go func() { waiting <- refused(w.a.Host, w.b.Addr(portEcho), []byte("patient")) }()
	// The retransmission of a SYN comes after a second; two are enough.
	w.eventually(t, func() error {
		if time.Since(parked) < 2500*time.Millisecond {
			return errors.New("too early to tell")
		}
		return nil
	})
	if done := chat.successes(); len(done) > 0 {
		t.Errorf("a parked pod managed %v", done)
	}
	link.silent(t, parked)
	if saw := get(t, w.c.Host, w.b.Addr(portHTTP)); saw.Server != "b" {
		t.Errorf("another pod of the node: %+v", saw)
	}
	w.ready(w.p1) // nobody waits for a pod that the agent does not name

	w.enrol(w.p1, w.a)
	must(t, <-waiting)
	w.eventually(t, func() error {
		if len(chat.successes()) < 3 { // the outside has no server
			return errors.New("not everything works again")
		}
		return nil
	})
}

// TestDelOfAParkedPod deletes a pod that nobody serves while an application of
// it still waits to be connected. Its SYNs must not go out with the rules gone.
func TestDelOfAParkedPod(t *testing.T) {
	w := plan(t)
	p := w.start(w.n1, rig.Options{NoAgent: true})
	w.p1 = p
	agent, err := fakeagent.Listen(p.Socket())
	must(t, err)
	defer agent.Close()
	first, err := agent.Accept(w.patience())
	must(t, err)
	must(t, first.Add("a", infoOf(w.a), w.a.NS()))
	must(t, first.SnapshotSent())
	w.ready(p)
	link := record(t, w.a)
	must(t, first.Close())
	second, err := agent.Accept(w.patience())
	must(t, err)
	defer second.Close()
	must(t, second.SnapshotSent())
	w.eventually(t, func() error {
		if state := w.pods(t, p)["a"].State; state != "Parked" {
			return errors.New("its state is " + state)
		}
		return nil
	})
	waiting := make(chan error, 1)
	go func() { waiting <- refused(w.a.Host, w.b.Addr(portEcho), []byte("hello")) }()
	w.eventually(t, func() error { return w.connecting(w.a) })
	must(t, second.Del("a"))
	if err := <-waiting; err == nil || isTimeout(err) {
		t.Errorf("what waited saw %v, want an end", err)
	}
	w.eventually(t, func() error {
		if left := w.traces(t, w.a); len(left) > 0 {
			return fmt.Errorf("left in a: %q", left)
		}
		return nil
	})
	if n := link.kinds(time.Time{}); n["tcp"]+n["dns"]+n["tunnel"] > 0 {
		t.Errorf("the pod sent %v", n)
	}
	must(t, refused(w.a.Host, w.b.Addr(portEcho), []byte("free again")))
}

// TestReadiness reads the readiness page of a proxy that no agent has told its
// pods yet.
func TestReadiness(t *testing.T) {
	w := plan(t)
	p := w.start(w.n1, rig.Options{NoAgent: true})
	w.p1 = p
	const page = "not ready, pending: workload proxy manager\n"
	must(t, p.AwaitPage(w.patience(), rig.ReadyPage, page))
	status, body, err := p.Get(t.Context(), rig.ReadyPage)
	if err != nil || status != http.StatusInternalServerError || body != page {
		t.Errorf("without an agent: %d %q, %v", status, body, err)
	}
	w.logged(t, p, 0, "failed to connect to the Istio CNI node agent over", "is the node agent healthy?")
}

// TestWrongCgroupRoot gives the proxy a cgroup that its pods are not in. It must
// not call a pod captured that is not.
func TestWrongCgroupRoot(t *testing.T) {
	w := plan(t)
	elsewhere := w.lab.CgroupRoot() + "/elsewhere"
	must(t, unix.Mkdir(elsewhere, 0o755))
	p := w.start(w.n1, rig.Options{Env: map[string]string{"CGROUP_ROOT": elsewhere}})
	w.p1 = p
	must(t, p.Agent.AwaitSnapshots(w.patience(), 1))
	must(t, p.AwaitReady(w.patience())) // there is no pod yet
	err := p.Enrol(w.a, "default")
	if err == nil {
		t.Fatal("the pod was accepted")
	}
	for _, want := range []string{"failure to start proxy : ", "default/a", "is not inside CGROUP_ROOT " + elsewhere} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the refusal %q lacks %q", err, want)
		}
	}
	must(t, p.AwaitPage(w.patience(), rig.ReadyPage, "not ready, pending: workload proxy manager\n"))
	w.logged(t, p, 0, "\twarn\t", "failed to start proxy, scheduling retry", "is not inside CGROUP_ROOT")
	if state := w.pods(t, p)["a"].State; state != "Pending" {
		t.Errorf("its state is %q", state)
	}
	// It is not captured, and nothing stands in its way.
	if saw := get(t, w.a.Host, w.b.Addr(portHTTP)); saw.Server != "b" {
		t.Errorf("a refused pod: %+v", saw)
	}
	must(t, p.Agent.Del("a"))
	must(t, p.AwaitReady(w.patience()))
}

// TestDrain ends proxies by SIGTERM, of the client's node and of the server's.
// Connections that are open may finish, and new ones wait.
func TestDrain(t *testing.T) {
	w := newWorld(t, rig.Options{Env: map[string]string{"CONNECTION_TERMINATION_DEADLINE": "15s"}})
	for _, p := range []*rig.Proxy{w.p1, w.p2} {
		t.Run(p.Node().Name(), func(t *testing.T) {
			link := record(t, w.a)
			since := p.Output.Mark()
			open := w.dial(t, w.a.Host, w.b.Addr(portEcho))
			echo(t, open, []byte("before"))
			must(t, p.Signal(unix.SIGTERM))
			w.logged(t, p, since, "received signal SIGTERM, starting shutdown")
			w.eventually(t, func() error { // the first thing to go
				if _, _, err := p.Get(t.Context(), rig.ReadyPage); err == nil {
					return errors.New("readiness is still answered")
				}
				return nil
			})
			echo(t, open, []byte("meanwhile"))
			marker := newMarker()
			waiting := make(chan error, 1)
			go func() { waiting <- refused(w.a.Host, w.b.Addr(portEcho), marker) }()
			echo(t, open, make([]byte, 1<<20))
			must(t, open.CloseWrite())
			if err := ended(open); !errors.Is(err, io.EOF) {
				t.Errorf("the connection ended with %v", err)
			}
			must(t, open.Close())
			began := time.Now()
			if code, err := p.Wait(w.patience()); code != 0 || err != nil {
				t.Errorf("it ended with %d, %v", code, err)
			}
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("it waited %v for nothing", took)
			}
			w.logged(t, p, since, "shutdown complete")
			link.lacks(t, marker)
			must(t, p.Restart())
			w.ready(p)
			if p == w.p1 { // on the other node it was asked for, and refused
				must(t, <-waiting)
			} else {
				<-waiting
			}
			link.lacks(t, marker)
			must(t, refused(w.a.Host, w.b.Addr(portEcho), []byte("after")))
		})
	}
}

// TestDrainHasAnEnd ends a proxy by SIGTERM under a connection that does not
// end.
func TestDrainHasAnEnd(t *testing.T) {
	w := newWorld(t, rig.Options{Env: map[string]string{"CONNECTION_TERMINATION_DEADLINE": "1s"}})
	open := w.dial(t, w.a.Host, w.b.Addr(portEcho))
	echo(t, open, []byte("before"))
	since := w.p1.Output.Mark()
	must(t, w.p1.Signal(unix.SIGTERM))
	if code, err := w.p1.Wait(w.patience()); code != 0 || err != nil {
		t.Errorf("it ended with %d, %v", code, err)
	}
	if err := ended(open); isTimeout(err) {
		t.Error("the connection outlived the proxy")
	}
	w.logged(t, w.p1, since, "\twarn\t", "drain duration expired with pending connections, forcefully shutting down")
}

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/test/netlab"
	"github.com/ztunnel-go/ztunnel/test/netlab/serve"
	"github.com/ztunnel-go/ztunnel/test/rig"
)

// A load makes new connections at a steady rate and checks the answer of each.
type load struct {
	kind  string
	every time.Duration
	try   func() error
}

// A tally is what became of the attempts of one load.
type tally struct {
	mu       sync.Mutex
	attempts int             // guarded by mu
	failures []string        // guarded by mu
	took     []time.Duration // guarded by mu
}

func (c *tally) note(began time.Time, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.attempts++
	c.took = append(c.took, time.Since(began))
	if err != nil {
		c.failures = append(c.failures, fmt.Sprintf("%s: after %v: %v", began.Format("05.000"), time.Since(began).Round(time.Millisecond), err))
	}
}

func (c *tally) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.attempts == 0 {
		return "none"
	}
	slices.Sort(c.took)
	at := func(part float64) time.Duration {
		return c.took[int(part*float64(len(c.took)-1))].Round(100 * time.Microsecond)
	}
	return fmt.Sprintf("%d attempts, %d failed, median %v, p99 %v, longest %v", c.attempts, len(c.failures), at(.5), at(.99), at(1))
}

// run makes attempts until ctx ends, each in a goroutine of its own so that
// none waits for another, and returns when all have ended.
func (l load) run(ctx context.Context, c *tally) {
	var attempts sync.WaitGroup
	defer attempts.Wait()
	for next := time.Now(); ; next = next.Add(l.every) { // what is late is made up for
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Until(next)):
		}
		attempts.Go(func() {
			began := time.Now()
			c.note(began, l.try())
		})
	}
}

// talks connects, wants its bytes back, and then the end after its own.
func talks(from *netlab.Host, to netip.AddrPort) error {
	conn, err := reaches(from, to)
	if err != nil {
		return err
	}
	defer conn.Close()
	return converses(conn)
}

// talksBySOCKS is talks by way of the proxy's SOCKS5 port, to the service.
func talksBySOCKS(from *netlab.Host) error {
	conn, err := reaches(from, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 15080))
	if err != nil {
		return err
	}
	defer conn.Close()
	vip := serviceVIPs()[0].As4()
	if _, err := conn.Write(slices.Concat([]byte{5, 1, 0, 5, 1, 0, 1}, vip[:], []byte{0, 7})); err != nil {
		return err
	}
	var answer [12]byte
	if _, err := io.ReadFull(conn, answer[:]); err != nil || answer[3] != 0 {
		return fmt.Errorf("SOCKS5 answers % x, %w", answer, err)
	}
	return converses(conn)
}

func reaches(from *netlab.Host, to netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{Timeout: patience}
	conn, err := from.DialWith(context.Background(), &d, "tcp", to.String())
	if err == nil {
		err = conn.SetDeadline(time.Now().Add(patience))
	}
	return conn, err
}

func converses(conn net.Conn) error {
	var sent [512]byte
	rand.Read(sent[:]) // never fails since Go 1.24
	if _, err := conn.Write(sent[:]); err != nil {
		return err
	}
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(conn, got); err != nil {
		return err
	}
	if !bytes.Equal(got, sent[:]) {
		return errors.New("something else came back")
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	if n, err := conn.Read(got); n > 0 || !errors.Is(err, io.EOF) {
		return fmt.Errorf("at the end: %d bytes, %w", n, err)
	}
	return nil
}

// resolves asks for the service's address, once.
func resolves(from *netlab.Host, server, want netip.Addr) error {
	conn, err := from.Dial(context.Background(), "udp", at(server, 53).String())
	if err != nil {
		return err
	}
	defer conn.Close()
	client := dns.Client{Timeout: patience}
	reply, _, err := client.ExchangeWithConn(new(dns.Msg).SetQuestion(dns.Fqdn(serviceName), dns.TypeA), &dns.Conn{Conn: conn})
	if err != nil {
		return err
	}
	if len(reply.Answer) != 1 || reply.Answer[0].(*dns.A).A.String() != want.String() {
		return fmt.Errorf("the answer is %v", reply)
	}
	return nil
}

// TestReplacement replaces the proxy of a node again and again, as an upgrade
// of a DaemonSet does: the new process starts beside the old one, in a network
// namespace of its own, and when it is ready the old one is told to end. Nobody
// who connects meanwhile notices.
func TestReplacement(t *testing.T) {
	w := plan(t)
	w.replaceUnderLoad(t, rig.Options{}, wanted(50), 10_000)
}

// TestReplacementWhereIstioCaptures is the same with istio-cni's rules, where
// processes share ports.
func TestReplacementWhereIstioCaptures(t *testing.T) {
	w := plan(t)
	for _, pod := range []*netlab.Pod{w.a, w.b, w.c} {
		redirect(t, pod, rig.IstioCNI)
	}
	w.replaceUnderLoad(t, rig.Options{Env: map[string]string{"CAPTURE": "istio-cni"}}, wanted(10), 2_000)
}

// loads are 240 connections in a second.
func (w *world) loads() []load {
	return []load{
		{"from a pod, tunnelled", 12500 * time.Microsecond, func() error { return talks(w.a.Host, w.b.Addr(portEcho)) }},
		{"to a pod, tunnelled", 16667 * time.Microsecond, func() error { return talks(w.b.Host, w.a.Addr(portEcho)) }},
		{"to a pod, plain", 16667 * time.Microsecond, func() error { return talks(w.stranger.Host, w.a.Addr(portEcho)) }},
		{"from a pod, out of the mesh", 50 * time.Millisecond, func() error { return talks(w.c.Host, at(w.outside.IPv4, portEcho)) }},
		{"by SOCKS5", 50 * time.Millisecond, func() error { return talksBySOCKS(w.a.Host) }},
		{"names", 50 * time.Millisecond, func() error { return resolves(w.a.Host, w.resolvers[0], serviceVIPs()[0]) }},
	}
}

// replaceUnderLoad makes so many replacements at least, and goes on until there
// were enough connections.
func (w *world) replaceUnderLoad(t *testing.T, o rig.Options, replacements, enough int) {
	t.Helper()
	o.Env = maps.Clone(o.Env)
	if o.Env == nil {
		o.Env = map[string]string{}
	}
	o.Env["UNSTABLE_ENABLE_SOCKS5"] = "true"
	w.serve(w.a.Host, serve.Options{Echo: port(portEcho)})
	w.serve(w.outside.Host, serve.Options{Echo: port(portEcho)})
	w.p1, w.p2 = w.startIn("proxy-0", nil, o), w.start(w.n2, o)
	w.enrol(w.p1, w.a, w.c)
	w.enrol(w.p2, w.b)
	w.ready(w.p1, w.p2)

	loads := w.loads()
	tallies := make([]tally, len(loads))
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var running sync.WaitGroup
	began := time.Now()
	for i, l := range loads {
		running.Go(func() { l.run(ctx, &tallies[i]) })
	}
	connections := func() (n int) {
		for i, l := range loads {
			if l.kind != "names" {
				tallies[i].mu.Lock()
				n += tallies[i].attempts
				tallies[i].mu.Unlock()
			}
		}
		return n
	}
	rounds := 0
	for ; !t.Failed() && (rounds < replacements || connections() < enough); rounds++ {
		w.replace(t, rounds+1, o)
	}
	lasted := time.Since(began)
	stop()
	running.Wait()
	rate := float64(connections()) / lasted.Seconds()
	t.Logf("%d replacements in %v under %d connections (%.0f in a second)", rounds, lasted.Round(time.Second), connections(), rate)
	if rate < 200 {
		t.Errorf("%.0f connections in a second are not what was meant", rate)
	}
	for i, l := range loads {
		t.Logf("%s: %v", l.kind, &tallies[i])
		for _, failure := range tallies[i].failures[:min(len(tallies[i].failures), 10)] {
			t.Errorf("%s: %s", l.kind, failure)
		}
	}
}

// wanted is how many replacements this run is to make: n, unless somebody at
// work on them asks for another number.
func wanted(n int) int {
	if other, err := strconv.Atoi(os.Getenv("ZTUNNEL_TESTS_REPLACEMENTS")); err == nil {
		return other
	}
	return n
}

// startIn starts a proxy of node 1 in a namespace of its own.
func (w *world) startIn(name string, beside *rig.Proxy, o rig.Options) *rig.Proxy {
	w.t.Helper()
	own, err := w.lab.Bare(name)
	must(w.t, err)
	o.In, o.Beside = own, beside
	return w.start(w.n1, o)
}

// replace puts another process in the place of node 1's.
func (w *world) replace(t *testing.T, round int, o rig.Options) {
	t.Helper()
	old := w.p1
	taken := old.Agent.Snapshots()
	frozen := round%4 == 0
	if frozen { // so that it ends with its queues full
		must(t, old.Signal(unix.SIGSTOP))
	}
	next := w.startIn(fmt.Sprintf("proxy-%d", round), old, o)
	must(t, old.Agent.AwaitSnapshots(w.patience(), taken+1))
	w.ready(next)
	w.p1 = next
	must(t, old.Signal(unix.SIGTERM))
	if frozen {
		must(t, old.Signal(unix.SIGCONT))
	}
	if code, err := old.Wait(w.patience()); code != 0 || err != nil {
		t.Errorf("the old process ended with %d, %v", code, err)
	}
	for _, line := range old.Output.Lines(0) {
		if strings.Contains(line, "\terror\tcapture\t") || strings.Contains(line, "panic:") || strings.Contains(line, "DATA RACE") {
			t.Errorf("the old process said %s", line)
		}
	}
	w.mesh.Retire(old)
}

// TestAReplacementThatFails starts new processes beside one that serves: one
// that cannot get certificates, and one that is killed as soon as it has taken
// over. The old one goes on, and takes back what it has lost.
func TestAReplacementThatFails(t *testing.T) {
	w := plan(t)
	w.p1, w.p2 = w.startIn("proxy-0", nil, rig.Options{}), w.start(w.n2, rig.Options{})
	w.enrol(w.p1, w.a, w.c)
	w.enrol(w.p2, w.b)
	w.ready(w.p1, w.p2)
	link := record(t, w.a)
	old := w.p1
	works := func(when string) {
		t.Helper()
		if err := talks(w.a.Host, w.b.Addr(portEcho)); err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}
	works("before")
	taken := old.Agent.Snapshots()
	cold := w.startIn("proxy-1", old, rig.Options{Env: map[string]string{
		"FAKE_CA": "false", "CA_ADDRESS": "https://127.0.0.1:1", "CA_ROOT_CA": filepath.Join(w.mesh.CADir(rig.DefaultCA), "root-cert.pem"),
	}})
	must(t, old.Agent.AwaitSnapshots(w.patience(), taken+1))
	w.logged(t, cold, 0, "failed to start proxy, scheduling retry", "the process before serves the pod on: ")
	if status, _, err := cold.Get(t.Context(), rig.ReadyPage); status == 200 || err != nil {
		t.Errorf("without certificates it answers %d, %v", status, err)
	}
	works("beside one without certificates")
	must(t, cold.Kill())
	w.mesh.Retire(cold)
	works("after its end")

	next := w.startIn("proxy-2", old, rig.Options{})
	must(t, old.Agent.AwaitSnapshots(w.patience(), taken+2))
	w.ready(next)
	works("beside one that has taken over")
	must(t, next.Kill())
	w.mesh.Retire(next)
	works("after its end") // it waits for the old one to notice
	w.logged(t, old, 0, "took a pod back", `pod="default/a"`)
	if status, body, err := old.Get(t.Context(), rig.ReadyPage); status != 200 || err != nil {
		t.Errorf("the old one is not ready: %d %s, %v", status, body, err)
	}
	if n := link.kinds(time.Time{}); n["tcp"] > 0 {
		t.Errorf("the pod sent %v", n)
	}
}

// TestReboot takes everything away that a node's kernel forgets when it is
// started anew, and starts the proxy: it is not ready before its pods are
// captured again.
func TestReboot(t *testing.T) {
	w := newWorld(t)
	must(t, w.p1.Kill())
	must(t, w.p1.Cleanup())
	if left := w.traces(t, w.a); len(left) > 0 {
		t.Fatalf("left in a: %q", left)
	}
	link := record(t, w.a)
	w.eventually(t, func() error { return refused(w.a.Host, w.b.Addr(portEcho), []byte("before there is a proxy")) })
	w.eventually(t, func() error {
		if link.kinds(time.Time{})["tcp"] == 0 {
			return errors.New("the recorder does not see the pod's traffic")
		}
		return nil
	})
	taken := w.p1.Agent.Snapshots()
	must(t, w.p1.Restart())
	w.ready(w.p1)
	ready := time.Now()
	if n := w.p1.Agent.Snapshots(); n != taken+1 {
		t.Errorf("it is ready after %d snapshots", n-taken)
	}
	for _, to := range []netip.AddrPort{w.b.Addr(portEcho), w.b.Addr6(portEcho)} {
		must(t, talks(w.a.Host, to))
	}
	if n := link.kinds(ready); n["tcp"] > 0 || n["tunnel"] == 0 {
		t.Errorf("since it is ready the pod sent %v", n)
	}
}

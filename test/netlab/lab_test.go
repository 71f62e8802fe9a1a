// SPDX-License-Identifier: Apache-2.0

package netlab

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/ztunnel-go/ztunnel/internal/netns"
	"github.com/ztunnel-go/ztunnel/test/leak"
	"github.com/ztunnel-go/ztunnel/test/netlab/serve"
	"github.com/ztunnel-go/ztunnel/test/privileged"
)

func TestMain(m *testing.M) {
	Main()
	os.Exit(m.Run())
}

// twoNodes is a lab with pod "a" on the first node and "b" on the second.
func twoNodes(t *testing.T) (l *Lab, a, b *Pod) {
	t.Helper()
	l = NewTest(t)
	n1, n2 := must(l.Node("n1"))(t), must(l.Node("n2"))(t)
	return l, must(n1.Pod("a"))(t), must(n2.Pod("b"))(t)
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func TestEveryoneReachesEveryoneUnderTheirOwnAddress(t *testing.T) {
	leak.Check(t)
	l, a, b := twoNodes(t)
	c := must(a.Node().Pod("c"))(t)
	late := must(l.Node("late"))(t)
	outside := netip.MustParseAddr("203.0.113.9")
	if err := late.AddAddress(outside); err != nil {
		t.Fatal(err)
	}
	web := must(b.Serve(serve.Options{HTTP: ":80"}))(t)
	must(late.Serve(serve.Options{HTTP: ":80"}))(t)

	for _, tc := range []struct {
		from *Host
		peer netip.Addr
		to   netip.Addr
	}{
		{a.Host, a.IPv4, b.IPv4}, {a.Host, a.IPv6, b.IPv6}, // across nodes
		{c.Host, c.IPv4, b.IPv4}, {b.Host, b.IPv4, b.IPv4}, // itself
		{b.Node().Host, b.Node().IPv4, b.IPv4}, {b.Node().Host, b.Node().IPv6, b.IPv6}, // a probe
		{a.Node().Host, a.Node().IPv4, b.IPv4}, {late.Host, late.IPv6, b.IPv6},
		{a.Host, a.IPv4, outside}, {a.Host, a.IPv6, late.IPv6},
	} {
		resp, err := tc.from.HTTPClient().Get("http://" + netip.AddrPortFrom(tc.to, 80).String() + "/x")
		if err != nil {
			t.Errorf("%s to %v: %v", tc.from.Name(), tc.to, err)
			continue
		}
		var saw serve.Answer
		err = json.NewDecoder(resp.Body).Decode(&saw)
		resp.Body.Close()
		if peer, _ := netip.ParseAddrPort(saw.Peer); err != nil || peer.Addr() != tc.peer {
			t.Errorf("%s to %v was seen as %q, want %v (%v)", tc.from.Name(), tc.to, saw.Peer, tc.peer, err)
		}
	}
	if err := web.Stop(); err != nil {
		t.Error(err)
	}
	if _, err := a.Dial(t.Context(), "tcp", b.Addr(80).String()); err == nil {
		t.Error("a stopped server still answers")
	}
}

func TestBulkAndDNSServers(t *testing.T) {
	leak.Check(t)
	_, a, b := twoNodes(t)
	name := "forwarded.example"
	must(b.Serve(serve.Options{
		Echo: ":7", Sink: ":9", Source: ":19", DNS: ":53",
		Records: map[string][]netip.Addr{name: {netip.MustParseAddr("203.0.113.7")}},
	}))(t)
	const size = 5_000_000

	sink := must(a.Dial(t.Context(), "tcp", b.Addr(9).String()))(t)
	defer sink.Close()
	if _, err := io.Copy(sink, serve.Pattern(size)); err != nil {
		t.Fatal(err)
	}
	sink.(*net.TCPConn).CloseWrite()
	line, err := io.ReadAll(sink)
	if want := fmt.Sprintf("%d %s\n", size, serve.PatternSum(size)); err != nil || string(line) != want {
		t.Errorf("sink said %q, %v; want %q", line, err, want)
	}

	source := must(a.Dial(t.Context(), "tcp", b.Addr6(19).String()))(t)
	defer source.Close()
	fmt.Fprintln(source, size)
	sum := sha256.New()
	if n, err := io.Copy(sum, source); n != size || err != nil || fmt.Sprintf("%x", sum.Sum(nil)) != serve.PatternSum(size) {
		t.Errorf("source gave %d bytes, %v", n, err)
	}

	for _, network := range []string{"udp", "tcp"} {
		conn := must(a.Dial(t.Context(), network, b.Addr(53).String()))(t)
		q := new(dns.Msg).SetQuestion(name+".", dns.TypeA)
		reply, _, err := new(dns.Client).ExchangeWithConn(q, &dns.Conn{Conn: conn})
		if err != nil || len(reply.Answer) != 1 || !strings.HasSuffix(reply.Answer[0].String(), "203.0.113.7") {
			t.Errorf("%s: %v, %v", network, reply, err)
		}
		conn.Close()
	}
}

func TestChildrenLiveInTheNamespaceAndTheCgroup(t *testing.T) {
	leak.Check(t)
	l, a, _ := twoNodes(t)
	var out bytes.Buffer
	cmd := exec.Command("readlink", "/proc/self/ns/net")
	cmd.Stdout = &out
	if err := a.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("net:[%d]\n", a.NS().ID().Ino); out.String() != want {
		t.Errorf("the child was in %q, want %q", out.String(), want)
	}
	byName := must(netns.Open(a.Path()))(t)
	defer byName.Close()
	if byName.ID() != a.NS().ID() {
		t.Errorf("%s names another namespace", a.Path())
	}

	forgotten := exec.Command("sleep", "1000")
	if err := a.Start(forgotten); err != nil {
		t.Fatal(err)
	}
	own := must(os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", forgotten.Process.Pid)))(t)
	if want := "0::/" + filepath.Base(l.CgroupRoot()); !strings.Contains(string(own), want) {
		t.Errorf("the child's cgroups are %q, want %q among them", own, want)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := forgotten.Wait(); err == nil {
		t.Error("a child outlived the lab")
	}
	for _, path := range []string{l.CgroupRoot(), l.Dir()} {
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("%s is left: %v", path, err)
		}
	}
	own = must(os.ReadFile("/proc/self/cgroup"))(t)
	if strings.Contains(string(own), namePrefix) {
		t.Errorf("we were left in %s", own)
	}
}

func TestADeletedPodIsGone(t *testing.T) {
	leak.Check(t)
	_, a, b := twoNodes(t)
	if err := b.Delete(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := a.Dial(ctx, "tcp", b.Addr(80).String()); err == nil {
		t.Error("a deleted pod was reached")
	}
	if _, err := os.Lstat(b.Path()); !os.IsNotExist(err) {
		t.Errorf("its name is left: %v", err)
	}
}

// TestReapsAfterACrash lets another process of this binary make a lab with a
// child in it and die by SIGKILL.
func TestReapsAfterACrash(t *testing.T) {
	privileged.Need(t)
	if os.Args[0] == "crash" {
		l := must(New(Config{}))(t)
		pod := must(must(l.Node("n"))(t).Pod("p"))(t)
		if err := pod.Start(exec.Command("sleep", "1000")); err != nil {
			t.Fatal(err)
		}
		fmt.Println(l.CgroupRoot(), l.Dir())
		os.Stdout.Close()
		select {}
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestReapsAfterACrash$")
	cmd.Args[0] = "crash"
	stdout := must(cmd.StdoutPipe())(t)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var cgroup, dir string
	_, err := fmt.Fscan(stdout, &cgroup, &dir)
	cmd.Process.Kill()
	cmd.Wait()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(cgroup); err != nil {
		t.Fatalf("the test tests nothing: %v", err)
	}
	NewTest(t)
	for _, path := range []string{cgroup, dir} {
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("%s was not reaped: %v", path, err)
		}
	}
}

func TestAProcessHasOneLab(t *testing.T) {
	leak.Check(t)
	first := NewTest(t)
	if l, err := New(Config{}); err == nil {
		l.Close()
		t.Error("made a lab inside a lab")
	}
	if _, err := os.Stat(first.CgroupRoot()); err != nil {
		t.Errorf("the refused lab took the first one's cgroup: %v", err)
	}
}

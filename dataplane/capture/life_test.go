// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/bpf/redirect"
	"github.com/ztunnel-go/ztunnel/internal/netns"
	"github.com/ztunnel-go/ztunnel/internal/sock"
	"github.com/ztunnel-go/ztunnel/test/netlab"
)

// traces lists what of ours is in a pod's namespace.
func traces(t *testing.T, pod *netlab.Pod) []string {
	t.Helper()
	var found []string
	must(t, pod.Do(func() error {
		for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
			rules, err := netlink.RuleList(family)
			if err != nil {
				return err
			}
			for _, r := range rules {
				if r.Table == captureTable || r.Table == deliveryTable {
					found = append(found, r.String())
				}
			}
			for _, table := range []int{captureTable, deliveryTable} {
				routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: table}, netlink.RT_FILTER_TABLE)
				if err != nil {
					return err
				}
				for _, r := range routes {
					found = append(found, r.String())
				}
			}
		}
		qdiscs, err := netlink.QdiscList(nil)
		if err != nil {
			return err
		}
		for _, q := range qdiscs {
			if q.Type() == "clsact" {
				found = append(found, q.Attrs().String())
			}
		}
		for _, s := range []string{"ipv4/tcp_fwmark_accept", "ipv4/fwmark_reflect", "ipv6/fwmark_reflect"} {
			b, err := os.ReadFile("/proc/sys/net/" + s)
			if err != nil {
				return err
			}
			if strings.TrimSpace(string(b)) != "0" {
				found = append(found, s)
			}
		}
		return nil
	}))
	return found
}

// holds counts our filters on a device.
func holds(t *testing.T, pod *netlab.Pod, name string) (n int) {
	t.Helper()
	must(t, pod.Do(func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		filters, err := netlink.FilterList(link, netlink.HANDLE_MIN_INGRESS)
		for _, f := range filters {
			if bpf, ok := f.(*netlink.BpfFilter); ok && bpf.Name == holdName {
				n++
			}
		}
		return err
	}))
	return n
}

// conversation is an open connection from h that has been greeted.
func conversation(t *testing.T, h *netlab.Host, addr string) net.Conn {
	t.Helper()
	c, err := h.Dial(context.Background(), "tcp", addr)
	must(t, err)
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(3 * time.Second))
	if _, err := c.Read(make([]byte, 512)); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestRemoveLeavesNothingAndLeaksNothing(t *testing.T) {
	r := newRig(t)
	pod, other := r.pod("a"), r.pod("b")
	app(t, pod.Host, "[::]:8080")
	p := r.capture(pod)
	out := conversation(t, pod.Host, "203.0.113.9:443")
	out6 := conversation(t, pod.Host, "[2001:db8:9::9]:443")
	in := conversation(t, other.Host, pod.Addr(8080).String())
	delivered, err := p.Deliver(context.Background(), other.IPv4, pod.Addr(8080))
	must(t, err)
	defer delivered.Close()
	packets := recordTCP(t, pod)

	stop := make(chan struct{})
	writers := make(chan struct{})
	go func() { // an application that does not stop talking
		defer close(writers)
		for {
			select {
			case <-stop:
				return
			default:
				out.Write([]byte("a secret to leak"))
				out6.Write([]byte("a secret to leak"))
				time.Sleep(time.Millisecond)
			}
		}
	}()
	must(t, p.Remove(context.Background()))
	in.Write([]byte("towards the pod"))
	time.Sleep(200 * time.Millisecond) // for retransmissions to leak, if there were any
	close(stop)
	<-writers
	for _, pkt := range packets() {
		if bytes.Contains(pkt.Payload, []byte("a secret")) || pkt.Dst.Addr().String() == "203.0.113.9" {
			t.Errorf("left the pod: %v", pkt)
		}
	}
	if left := traces(t, pod); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	if _, err := os.Stat(filepath.Join(r.cfg.PinDir, fmt.Sprint("v", redirect.ABI), "pods", fmt.Sprint(p.cookie))); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("pins of the pod: %v", err)
	}
	got, err := ask(other.Host, pod.Addr(8080).String(), "x")
	wants(t, "afterwards", got, err, "app from="+other.IPv4.String())
	got, err = ask(pod.Host, r.host.IPv4.String()+":1", "x")
	if !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("a connect afterwards: %q, %v", got, err)
	}
}

func TestASocketThatOutlivesTheEnrolmentIsFree(t *testing.T) {
	r := newRig(t)
	pod, other := r.pod("a"), r.pod("b")
	app(t, other.Host, "[::]:8080")
	p := r.capture(pod)
	fd := socket(t, pod.Host, unix.AF_INET, unix.SOCK_STREAM, 0)
	must(t, unix.BindToDevice(fd, "eth0"))
	if err := unix.Connect(fd, sockaddr4(other.Addr(8080).String())); err != unix.EPERM {
		t.Fatal(err)
	}
	must(t, p.Remove(context.Background()))
	must(t, unix.Connect(fd, sockaddr4(other.Addr(8080).String())))
	got, err := readLine(fd)
	wants(t, "its next connect", got, err, "app from")
}

func TestWithoutAProxyConnectionsWaitForTheNext(t *testing.T) {
	r := newRig(t)
	pod := r.pod("a")
	first := r.capture(pod)
	packets := recordTCP(t, pod)
	first.stopServing() // as a crash leaves it, but for the order
	must(t, r.node.Close())

	type answer struct {
		got string
		err error
	}
	answers := make(chan answer, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		c, err := pod.Dial(ctx, "tcp", "203.0.113.9:443")
		if err != nil {
			answers <- answer{err: err}
			return
		}
		defer c.Close()
		got, err := talk(c, "x")
		answers <- answer{got, err}
	}()
	u, err := pod.Dial(context.Background(), "udp", "10.96.0.10:53")
	must(t, err)
	defer u.Close()
	u.Write([]byte("a name"))
	select {
	case a := <-answers:
		t.Errorf("before there is a proxy: %q, %v", a.got, a.err)
	case <-time.After(300 * time.Millisecond):
	}

	r.open()
	second := r.add(pod)
	if second.Succeeds() {
		t.Error("somebody serves it")
	}
	must(t, second.Enable(context.Background()))
	a := <-answers
	wants(t, "the waiting connection", a.got, a.err, "outbound dst=203.0.113.9:443")
	for _, pkt := range packets() {
		t.Errorf("left the pod: %v", pkt)
	}
}

func TestANewProcessTakesOverFromALiveOne(t *testing.T) {
	r := newRig(t)
	pod := r.pod("a")
	first, firstNode := r.capture(pod), r.node
	r.open()
	second := r.capture(pod)
	got, err := ask(pod.Host, "203.0.113.9:443", "x")
	wants(t, "connect", got, err, "outbound")
	if err := first.steer.SetListener(redirect.SlotOutbound, 0); !errors.Is(err, redirect.ErrReplaced) {
		t.Errorf("the old process wrote a slot back: %v", err)
	}
	must(t, first.Remove(context.Background())) // changes nothing that is the second's
	must(t, firstNode.Close())
	got, err = ask(pod.Host, "203.0.113.9:443", "x")
	wants(t, "after the first's end", got, err, "outbound")
	for _, name := range []string{"lo", "eth0"} {
		if n := holds(t, pod, name); n != 1 {
			t.Errorf("%s has %d filters of ours", name, n)
		}
	}
	must(t, second.verify(context.Background()))
}

func TestCleanupFindsEverything(t *testing.T) {
	r := newRig(t)
	pod := r.pod("a")
	p := r.capture(pod)
	c := conversation(t, pod.Host, "203.0.113.9:443")
	packets := recordTCP(t, pod)
	p.stopServing()
	must(t, r.node.Close())
	for range 2 {
		must(t, Cleanup(context.Background(), r.cfg))
	}
	c.Write([]byte("a secret to leak"))
	if left := traces(t, pod); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	if _, err := os.Stat(r.cfg.PinDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("pins: %v", err)
	}
	for _, pkt := range packets() {
		t.Errorf("left the pod: %v", pkt)
	}
}

func TestPinsOfDeadPodsAreCollected(t *testing.T) {
	r := newRig(t)
	pod := r.pod("a")
	p := r.capture(pod)
	cookie := p.cookie
	p.stopServing()
	must(t, pod.Delete())
	eventually(t, func() error { // the kernel takes namespaces down in its own time
		if _, err := r.node.bpf.Collect(); err != nil {
			return err
		}
		_, err := os.Stat(filepath.Join(r.cfg.PinDir, fmt.Sprint("v", redirect.ABI), "pods", fmt.Sprint(cookie)))
		if !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("still pinned: %v", err)
		}
		return nil
	})
	if on, err := r.node.bpf.IsEnrolled(cookie); on || err != nil {
		t.Errorf("still enrolled: %v, %v", on, err)
	}
}

func TestAWrongCgroupRootRefusesThePod(t *testing.T) {
	r := newRig(t, func(c *Config) {
		wrong := filepath.Join(c.CgroupRoot, "elsewhere")
		if err := os.Mkdir(wrong, 0o755); err != nil {
			panic(err)
		}
		c.CgroupRoot = wrong
	})
	t.Cleanup(func() { os.Remove(r.cfg.CgroupRoot) })
	pod := r.pod("a")
	_, err := r.node.Add(context.Background(), PodInfo{Name: "a"}, pod.NS())
	if err == nil || !strings.Contains(err.Error(), "not inside CGROUP_ROOT") {
		t.Errorf("Add: %v", err)
	}
}

func TestTheSweepFindsWhatWasOpenedPastThePrograms(t *testing.T) {
	r := newRig(t)
	pod, other := r.pod("a"), r.pod("b")
	app(t, other.Host, "[::]:8080")
	conversation(t, pod.Host, other.Addr(8080).String()) // before the enrolment
	p := r.capture(pod)
	conversation(t, pod.Host, "203.0.113.9:443")
	must(t, p.sweep())
	clear(p.old) // as if the first were younger
	if err := p.sweep(); err == nil || !strings.Contains(err.Error(), "past the programs") {
		t.Errorf("sweep: %v", err)
	}
}

func TestChecksRepairTheRulesOnce(t *testing.T) {
	r := newRig(t)
	pod := r.pod("a")
	p := r.capture(pod)
	p.mu.Lock()
	err := p.router.removeRules(unix.AF_INET)
	p.mu.Unlock()
	must(t, err)
	must(t, p.verify(context.Background()))
	got, err := ask(pod.Host, "203.0.113.9:443", "x")
	wants(t, "afterwards", got, err, "outbound")
}

func TestADeliveryThatIsCapturedAgainIsReset(t *testing.T) {
	r := newRig(t)
	pod, other := r.pod("a"), r.pod("b")
	app(t, pod.Host, "[::]:8080")
	p := r.capture(pod)
	// As if its announcement had been lost: nobody announces a socket that is
	// not flagged.
	c, err := p.strangers().DialTCP(context.Background(), sock.Dial{
		Dst: pod.Addr(8080), Src: other.IPv4, Mark: redirect.MarkDelivery})
	if err == nil {
		c.SetDeadline(time.Now().Add(3 * time.Second))
		_, err = c.Read(make([]byte, 1))
		c.Close()
	}
	if !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("recaptured delivery: %v", err)
	}
	if r.count("capture", "recaptured_delivery_reset") == 0 {
		t.Error("not counted")
	}
}

func TestADeliveryDoesNotHitALiveConnection(t *testing.T) {
	r := newRig(t)
	pod, other := r.pod("a"), r.pod("b")
	app(t, pod.Host, "[::]:8080")
	p := r.capture(pod)
	for _, to := range []string{pod.Addr(8080).String(), pod.Addr6(8080).String()} {
		live := conversation(t, other.Host, to)
		local := canonical(live.LocalAddr())
		// No other port to choose than that of the client's own connection.
		must(t, pod.Sysctl("net/ipv4/ip_local_port_range", fmt.Sprintf("%d %d", local.Port(), local.Port())))
		c, err := p.Deliver(context.Background(), local.Addr(), canonical(live.RemoteAddr()))
		if !errors.Is(err, unix.EPERM) {
			t.Errorf("delivery in place of a live connection: %v", err)
			if err == nil {
				c.Close()
			}
		}
		must(t, pod.Sysctl("net/ipv4/ip_local_port_range", "32768 60999"))
		if _, err := live.Write([]byte("still there")); err != nil {
			t.Error(err)
		}
		got := make([]byte, 100)
		if n, err := live.Read(got); err != nil {
			t.Errorf("the live connection: %q, %v", got[:n], err)
		}
	}
	if r.count("connect", "refused_port_collision") == 0 {
		t.Error("not counted")
	}
}

func TestThePodOfTheProxyItselfIsRefused(t *testing.T) {
	r := newRig(t)
	for what, ns := range map[string]string{"the proxy's own": "/proc/thread-self/ns/net", "the host's": r.host.Path()} {
		n, err := netns.Open(ns)
		must(t, err)
		_, err = r.node.Add(context.Background(), PodInfo{Name: "x"}, n)
		if err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
		n.Close()
	}
}

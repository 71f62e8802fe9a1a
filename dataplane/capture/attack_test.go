// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/test/netlab"
)

func TestWhatWouldLeaveByADeviceIsRefused(t *testing.T) {
	r := newRig(t)
	pod := r.pod("a")
	r.capture(pod)
	fd := socket(t, pod.Host, unix.AF_INET, unix.SOCK_STREAM, 0)
	must(t, unix.BindToDevice(fd, "eth0"))
	if err := unix.Connect(fd, sockaddr4("203.0.113.9:443")); err != unix.EPERM {
		t.Errorf("bound to eth0: %v", err)
	}
	fd = socket(t, pod.Host, unix.AF_INET6, unix.SOCK_STREAM, 0)
	to := sockaddr6("[fe80::1]:80")
	to.ZoneId = 2
	if err := unix.Connect(fd, to); err != unix.EPERM {
		t.Errorf("link-local: %v", err)
	}
	for _, reason := range []string{"refused_bound_to_device", "refused_link_local"} {
		if r.count("connect", reason) != 1 {
			t.Errorf("%s is counted %d times", reason, r.count("connect", reason))
		}
	}
}

// recordTCP records TCP and DNS on the pod's link until the function is called.
func recordTCP(t *testing.T, pod *netlab.Pod) func() []*netlab.Packet {
	t.Helper()
	rec, err := pod.Node().Record(pod.VethName, func(p *netlab.Packet) bool {
		return p.Proto == netlab.ProtoTCP || (p.Proto == netlab.ProtoUDP && (p.Src.Port() == 53 || p.Dst.Port() == 53))
	})
	must(t, err)
	t.Cleanup(func() { rec.Stop() })
	return func() []*netlab.Packet {
		t.Helper()
		packets, err := rec.Stop()
		must(t, err)
		return packets
	}
}

func TestForgedMarksAndDevicesLeakNothing(t *testing.T) {
	r := newRig(t)
	pod, victim := r.pod("a"), r.pod("b")
	app(t, victim.Host, "[::]:8080")
	r.capture(pod)
	r.capture(victim)
	packets := recordTCP(t, pod)
	for _, mark := range []int{0, 0x111, 0x539, 0x1000} {
		// Before the connect: the program marks it anew.
		fd := socket(t, pod.Host, unix.AF_INET, unix.SOCK_STREAM, 0)
		must(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, mark))
		must(t, unix.Connect(fd, sockaddr4(victim.Addr(8080).String())))
		got, err := readLine(fd)
		wants(t, fmt.Sprintf("mark %#x before", mark), got, err, "outbound dst="+victim.Addr(8080).String())
		// After it: the guard keeps it in.
		must(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, mark))
		unix.Write(fd, []byte("a secret to leak"))
	}
	fd := socket(t, pod.Host, unix.AF_INET, unix.SOCK_STREAM, 0)
	must(t, unix.Connect(fd, sockaddr4(victim.Addr(8080).String())))
	must(t, unix.BindToDevice(fd, "eth0"))
	unix.Write(fd, []byte("a secret to leak"))
	fd6 := socket(t, pod.Host, unix.AF_INET6, unix.SOCK_STREAM, 0)
	must(t, unix.Connect(fd6, sockaddr6(victim.Addr6(8080).String())))
	must(t, unix.BindToDevice(fd6, "eth0"))
	unix.Write(fd6, []byte("a secret to leak"))
	fdm := socket(t, pod.Host, unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP)
	must(t, unix.Connect(fdm, sockaddr4(victim.Addr(8080).String())))
	if err := unix.BindToDevice(fdm, "eth0"); err != nil {
		t.Logf("MPTCP sockets cannot be bound to a device: %v", err)
	}
	unix.SetsockoptInt(fdm, unix.SOL_SOCKET, unix.SO_MARK, 0)
	unix.Write(fdm, []byte("a secret to leak"))
	if r.count("egress", "dropped_escape") == 0 {
		t.Error("the guard had nothing to do: does the test still try to escape?")
	}
	for _, p := range packets() {
		t.Errorf("left the pod: %v", p)
	}
}

func TestAnotherPodCannotForgeAnAnnouncement(t *testing.T) {
	r := newRig(t)
	pod, attacker := r.pod("a"), r.pod("b")
	app(t, pod.Host, "[::]:8080")
	p := r.capture(pod)
	r.capture(attacker)
	outsider := r.pod("c") // not captured: its SYN gets through to the victim
	for _, h := range []*netlab.Host{attacker.Host, outsider.Host} {
		fd := socket(t, h, unix.AF_INET, unix.SOCK_STREAM, 0)
		must(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, 0x111))
		must(t, unix.Connect(fd, sockaddr4(pod.Addr(8080).String())))
		got, err := readLine(fd)
		if err != nil || strings.HasPrefix(got, "app") {
			t.Errorf("reached the application: %q, %v", got, err)
		}
	}
	if got := podCount(t, p, "pass_host"); got != 0 {
		t.Errorf("%d passed as the host", got)
	}
}

func TestASourceRouteLeadsNowhere(t *testing.T) {
	r := newRig(t)
	pod, victim := r.pod("a"), r.pod("b")
	r.capture(pod)
	packets := recordTCP(t, pod)
	// To loopback, by way of another pod: connect sees only loopback.
	hop := victim.IPv4.As4()
	route := append([]byte{1, 131, 7, 4}, hop[:]...) // NOP, LSRR (RFC 791)
	for _, to := range []string{"127.0.0.1:8080", pod.Addr(8080).String(), victim.Addr(8080).String()} {
		fd := socket(t, pod.Host, unix.AF_INET, unix.SOCK_STREAM, 0)
		must(t, unix.SetsockoptString(fd, unix.SOL_IP, unix.IP_OPTIONS, string(route)))
		must(t, unix.SetNonblock(fd, true))
		if err := unix.Connect(fd, sockaddr4(to)); err != nil && err != unix.EINPROGRESS {
			t.Logf("%s: %v", to, err)
		}
	}
	if r.count("egress", "dropped_escape") == 0 {
		t.Error("the guard had nothing to do: does the test still try to escape?")
	}
	for _, p := range packets() {
		t.Errorf("left the pod: %v", p)
	}
}

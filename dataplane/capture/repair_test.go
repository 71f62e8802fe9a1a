// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/bpf/redirect"
	"github.com/ztunnel-go/ztunnel/test/netlab"
)

// A damage is what somebody with root on the node may do to a pod's capture.
type damage struct {
	name string
	do   func(t *testing.T, p *proxy, pod *netlab.Pod, pins string)
	// open: until it is repaired, connections may go past the proxy. Else
	// they go nowhere.
	open bool
}

func damages() []damage {
	pod := func(p *proxy, name string) string { return filepath.Join("pods", fmt.Sprint(p.cookie), name) }
	detach := func(name func(*proxy) string) func(*testing.T, *proxy, *netlab.Pod, string) {
		return func(t *testing.T, p *proxy, _ *netlab.Pod, pins string) {
			l, err := link.LoadPinnedLink(filepath.Join(pins, name(p)), nil)
			must(t, err)
			defer l.Close()
			must(t, l.Detach())
		}
	}
	remove := func(path func(*proxy) string, key func(*proxy) any) func(*testing.T, *proxy, *netlab.Pod, string) {
		return func(t *testing.T, p *proxy, _ *netlab.Pod, pins string) {
			m, err := ebpf.LoadPinnedMap(filepath.Join(pins, path(p)), nil)
			must(t, err)
			defer m.Close()
			must(t, m.Delete(key(p)))
		}
	}
	inPod := func(fn func(r *router) error) func(*testing.T, *proxy, *netlab.Pod, string) {
		return func(t *testing.T, _ *proxy, pod *netlab.Pod, _ string) {
			r, err := newRouter(pod.NS(), true)
			must(t, err)
			defer r.close()
			must(t, fn(r))
		}
	}
	is := func(name string) func(*proxy) string { return func(*proxy) string { return name } }
	return []damage{
		{"the rules are gone", inPod(func(r *router) error { return r.removeRules(unix.AF_INET) }), false},
		{"the routes are gone", inPod(func(r *router) error { return r.removeRoutes(unix.AF_INET) }), false},
		{"the route leads elsewhere", inPod(func(r *router) error {
			eth0, err := r.h.LinkByName("eth0")
			if err != nil {
				return err
			}
			return r.h.RouteReplace(&netlink.Route{LinkIndex: eth0.Attrs().Index, Table: captureTable, Type: unix.RTN_UNICAST,
				Scope: unix.RT_SCOPE_LINK, Dst: everywhere4()})
		}), false},
		{"the settings are gone", inPod(func(r *router) error { return r.setSysctls("0") }), false},
		{"the steering program is detached", detach(func(p *proxy) string { return pod(p, "steer") }), false},
		{"a listener is gone from its slot", remove(func(p *proxy) string { return pod(p, "listeners") }, func(*proxy) any { return uint32(redirect.SlotOutbound) }), false},
		{"all listeners are", func(t *testing.T, p *proxy, _ *netlab.Pod, _ string) {
			for _, s := range p.slots {
				cookie, err := socketCookie(s.conn)
				must(t, err)
				must(t, p.steer.Vacate(s.slot, cookie))
			}
		}, false},
		{"the enrolment is gone", remove(is("enrolled"), func(p *proxy) any { return p.cookie }), true},
		{"the connect program is detached", detach(is("connect4")), true},
		{"the guard is detached", detach(is("guard")), false},
	}
}

func everywhere4() *net.IPNet {
	return &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
}

// cgroupLink is the cgroup that a pinned link is attached to; 0: none.
func cgroupLink(t *testing.T, pin string) uint64 {
	t.Helper()
	l, err := link.LoadPinnedLink(pin, nil)
	must(t, err)
	defer l.Close()
	info, err := l.Info()
	must(t, err)
	return info.Cgroup().CgroupId
}

// TestDamageIsRepairedAndNeverSilent breaks a pod's capture in every way that
// there is, while the pod goes on connecting.
func TestDamageIsRepairedAndNeverSilent(t *testing.T) {
	r := newRig(t)
	host := r.pod("a")
	p := r.capture(host)
	pins := filepath.Join(r.cfg.PinDir, fmt.Sprintf("v%d", redirect.ABI))
	if _, err := os.Stat(pins); err != nil {
		t.Fatal(err)
	}
	works := func() error {
		c, err := host.DialWith(t.Context(), &net.Dialer{Timeout: time.Second}, "tcp", "203.0.113.9:443")
		if err != nil {
			return err
		}
		defer c.Close()
		got, err := talk(c, "x")
		if err == nil && !strings.HasPrefix(got, "outbound dst=203.0.113.9:443") {
			err = fmt.Errorf("%q answers", got)
		}
		return err
	}
	for _, d := range damages() {
		t.Run(d.name, func(t *testing.T) {
			must(t, works())
			packets := recordTCP(t, host)
			d.do(t, p, host, pins)
			if d.open {
				// What looks after it comes every second.
				eventually(t, func() error {
					if l := cgroupLink(t, filepath.Join(pins, "connect4")); l == 0 {
						return errors.New("connect4 is attached nowhere")
					}
					return p.broken()
				})
				packets = recordTCP(t, host)
			} else {
				_ = works() // it may fail
			}
			must(t, p.verify(context.Background())) // what comes every 15 s
			eventually(t, works)
			if err := p.Health(); err != nil {
				t.Error(err)
			}
			for _, packet := range packets() {
				t.Errorf("left the pod: %v", packet)
			}
		})
	}
}

// TestAListenerThatWasClosedIsNotMissed has a proxy that has stopped accepting
// and waits for its connections to end, before the capture is told of it.
func TestAListenerThatWasClosedIsNotMissed(t *testing.T) {
	r := newRig(t)
	p := r.capture(r.pod("a"))
	before := p.node.events.repaired.Load()
	must(t, p.Listener(Outbound).Close())
	p.lookAfter()
	must(t, p.verify(context.Background()))
	if n := p.node.events.repaired.Load() - before; n > 0 || p.Health() != nil {
		t.Errorf("%d repairs; %v", n, p.Health())
	}
}

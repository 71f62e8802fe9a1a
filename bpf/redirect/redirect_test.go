// SPDX-License-Identifier: Apache-2.0

package redirect

import (
	"fmt"
	"net/netip"
	"os"
	"testing"

	"github.com/ztunnel-go/ztunnel/internal/netns"
	"github.com/ztunnel-go/ztunnel/test/netlab"
)

// open gives a node attached to the lab's cgroup with pins of its own.
func open(t *testing.T, lab *netlab.Lab) (*Node, Options) {
	t.Helper()
	o := Options{PinDir: fmt.Sprintf("/sys/fs/bpf/zttest-%d", os.Getpid()), CgroupRoot: lab.CgroupRoot()}
	n, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		if err := Remove(o.PinDir); err != nil {
			t.Error(err)
		}
	})
	return n, o
}

func namespace(t *testing.T) (*netns.NS, uint64) {
	t.Helper()
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	cookie, err := ns.Cookie()
	if err != nil {
		t.Fatal(err)
	}
	return ns, cookie
}

func TestThisKernelHasEverything(t *testing.T) {
	netlab.NewTest(t)
	if err := Supported(); err != nil {
		t.Error(err)
	}
}

func TestAsksNothingOfAPodThatIsNotEnrolled(t *testing.T) {
	n, _ := open(t, netlab.NewTest(t))
	ns, cookie := namespace(t)
	p, err := n.Pod(cookie, ns.Fd(), true)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	pkt := Packet{From: netip.MustParseAddrPort("10.1.1.1:999"), To: netip.MustParseAddrPort("10.2.2.2:80"), Ifindex: 2}
	if v, err := p.Ask(pkt); err != nil || v.Drop {
		t.Errorf("before enrolment: %+v, %v", v, err)
	}
	if err := p.Enroll(); err != nil {
		t.Fatal(err)
	}
	if v, err := p.Ask(pkt); err != nil || !v.Drop {
		t.Errorf("enrolled and without a listener: %+v, %v", v, err)
	}
}

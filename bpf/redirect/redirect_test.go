// SPDX-License-Identifier: Apache-2.0

package redirect

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/internal/netns"
	"github.com/ztunnel-go/ztunnel/test/leak"
	"github.com/ztunnel-go/ztunnel/test/netlab"
)

// open gives a node attached to a lab's cgroup with pins of its own.
func open(t *testing.T) (*Node, Options) {
	t.Helper()
	leak.Check(t)
	lab := netlab.NewTest(t)
	o := Options{PinDir: fmt.Sprintf("/sys/fs/bpf/zttest-redirect-%d", os.Getpid()), CgroupRoot: lab.CgroupRoot()}
	n, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(n.Close(), Remove(o.PinDir)); err != nil {
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

// bench is a pod with a socket in every slot.
func bench(t *testing.T, n *Node) (*Pod, map[uint64]Slot) {
	t.Helper()
	ns, cookie := namespace(t)
	p, err := n.Pod(cookie, ns.Fd(), true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	slots := map[uint64]Slot{}
	for slot := SlotOutbound; slot <= SlotDNSTCP6; slot++ {
		var family, kind = unix.AF_INET6, unix.SOCK_STREAM
		if slot == SlotDNSUDP4 || slot == SlotDNSTCP4 {
			family = unix.AF_INET
		}
		if slot == SlotDNSUDP4 || slot == SlotDNSUDP6 {
			kind = unix.SOCK_DGRAM
		}
		fd := listening(t, ns, family, kind)
		if err := p.SetListener(slot, fd); err != nil {
			t.Fatal(err)
		}
		cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
		if err != nil {
			t.Fatal(err)
		}
		slots[cookie] = slot
	}
	return p, slots
}

func listening(t *testing.T, ns *netns.NS, family, kind int) int {
	t.Helper()
	fd := -1
	err := ns.Do(func() (err error) {
		if fd, err = unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		var sa unix.Sockaddr = &unix.SockaddrInet4{}
		if family == unix.AF_INET6 {
			sa = &unix.SockaddrInet6{}
		}
		if err := unix.Bind(fd, sa); err != nil || kind == unix.SOCK_DGRAM {
			return err
		}
		return unix.Listen(fd, 1)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func TestSteering(t *testing.T) {
	n, _ := open(t)
	p, slots := bench(t, n)
	own4, own6 := netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("fd01::2")
	if err := p.SetAddresses([]netip.Addr{own4, own6}); err != nil {
		t.Fatal(err)
	}
	if err := p.Enroll(); err != nil {
		t.Fatal(err)
	}
	const kernel = "the kernel's choice"
	name := func(v Verdict) string {
		if v.Drop {
			return "dropped"
		}
		if v.Socket == 0 {
			return kernel
		}
		slot, ok := slots[v.Socket]
		if !ok {
			return "an unknown socket"
		}
		return fmt.Sprint("slot ", uint32(slot))
	}
	slot := func(s Slot) string { return fmt.Sprint("slot ", uint32(s)) }
	const lo, eth0 = 1, 2
	for _, tt := range []struct {
		what, from, to string
		udp            bool
		ifindex        uint32
		want           string
	}{
		{"outbound", "10.1.0.2:999", "203.0.113.1:80", false, lo, slot(SlotOutbound)},
		{"outbound v6", "[fd01::2]:999", "[2001:db8::9]:80", false, lo, slot(SlotOutbound)},
		{"outbound to port 15008", "10.1.0.2:999", "203.0.113.1:15008", false, lo, slot(SlotOutbound)},
		{"inbound", "10.9.9.9:999", "10.1.0.2:80", false, eth0, slot(SlotPlaintext)},
		{"inbound v6", "[fd09::9]:999", "[fd01::2]:80", false, eth0, slot(SlotPlaintext)},
		{"inbound to our own port", "10.9.9.9:999", "10.1.0.2:15001", false, eth0, slot(SlotPlaintext)},
		{"tunnel", "10.9.9.9:999", "10.1.0.2:15008", false, eth0, slot(SlotHBONE)},
		{"tunnel v6", "[fd09::9]:999", "[fd01::2]:15008", false, eth0, slot(SlotHBONE)},
		{"self call", "10.1.0.2:999", "10.1.0.2:80", false, eth0, kernel},
		{"self call to 15008", "10.1.0.2:999", "10.1.0.2:15008", false, eth0, kernel},
		{"self call v6", "[fd01::2]:999", "[fd01::2]:80", false, eth0, kernel},
		{"loopback", "127.0.0.1:999", "127.0.0.1:80", false, lo, kernel},
		{"loopback v6", "[::1]:999", "[::1]:80", false, lo, kernel},
		{"loopback to own", "127.0.0.1:999", "10.1.0.2:80", false, eth0, kernel},
		{"inbound to an address not known yet", "10.9.9.9:999", "10.1.0.3:80", false, eth0, slot(SlotPlaintext)},
		{"asked by a program", "10.9.9.9:999", "10.1.0.2:80", false, 0, kernel},
		{"DNS", "10.1.0.2:999", "10.96.0.10:53", true, lo, slot(SlotDNSUDP4)},
		{"DNS v6", "[fd01::2]:999", "[fd96::10]:53", true, lo, slot(SlotDNSUDP6)},
		{"DNS over TCP", "10.1.0.2:999", "10.96.0.10:53", false, lo, slot(SlotDNSTCP4)},
		{"DNS over TCP v6", "[fd01::2]:999", "[fd96::10]:53", false, lo, slot(SlotDNSTCP6)},
		{"DNS from outside", "10.9.9.9:999", "10.1.0.2:53", true, eth0, kernel},
		{"DNS to the pod itself", "10.1.0.2:999", "10.1.0.2:53", true, lo, kernel},
		{"other UDP", "10.1.0.2:999", "10.96.0.10:123", true, lo, kernel},
		{"15053 from outside", "10.9.9.9:999", "10.1.0.2:15053", true, eth0, kernel},
	} {
		got, err := p.Ask(Packet{From: netip.MustParseAddrPort(tt.from), To: netip.MustParseAddrPort(tt.to), UDP: tt.udp, Ifindex: tt.ifindex})
		if err != nil || name(got) != tt.want {
			t.Errorf("%s: %s, %v, want %s", tt.what, name(got), err, tt.want)
		}
	}
}

func flow(owner uint64, from, to string) redirectFlow {
	f := redirectFlow{Owner: owner}
	a, b := netip.MustParseAddrPort(from), netip.MustParseAddrPort(to)
	f.From.Word, f.To.Word = ownKey(0, a.Addr()).Address.Word, ownKey(0, b.Addr()).Address.Word
	f.FromPort, f.ToPort = a.Port(), b.Port()
	return f
}

func TestAnnouncementsCountOnlyForTheirOwner(t *testing.T) {
	n, _ := open(t)
	p, slots := bench(t, n)
	if err := p.Enroll(); err != nil {
		t.Fatal(err)
	}
	from, to := "10.9.9.9:999", "10.1.0.2:80"
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		t.Fatal(err)
	}
	fresh, stale := uint64(now.Nano()), uint64(now.Nano())-11e9
	for _, tt := range []struct {
		what  string
		owner uint64
		since uint64
		pass  bool
	}{
		{"nobody's", p.cookie, 0, false},
		{"the pod's own", p.cookie, fresh, true},
		{"the host's", 0, fresh, true},
		{"another pod's", p.cookie + 1, fresh, false},
		{"an old one", p.cookie, stale, false},
		{"an old one of the host's", 0, stale, false},
	} {
		pass := n.maps[redirectMapPass]
		if tt.since != 0 {
			if err := pass.Update(flow(tt.owner, from, to), tt.since, ebpf.UpdateAny); err != nil {
				t.Fatal(err)
			}
		}
		v, err := p.Ask(Packet{From: netip.MustParseAddrPort(from), To: netip.MustParseAddrPort(to), Ifindex: 2})
		if err != nil || (v.Socket == 0) != tt.pass || (!tt.pass && slots[v.Socket] != SlotPlaintext) {
			t.Errorf("%s: %+v, %v", tt.what, v, err)
		}
		if err := pass.Delete(flow(tt.owner, from, to)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			t.Error(err)
		}
	}
}

func TestAFullPassMapTakesNewAnnouncements(t *testing.T) {
	n, _ := open(t)
	p, _ := bench(t, n)
	if err := p.Enroll(); err != nil {
		t.Fatal(err)
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		t.Fatal(err)
	}
	pass := n.maps[redirectMapPass]
	f := flow(1, "10.0.0.1:1", "10.1.0.2:80")
	for i := range pass.MaxEntries() + 1000 {
		f.From.Word[3] = i
		if err := pass.Update(f, uint64(now.Nano()), ebpf.UpdateAny); err != nil {
			t.Fatal(err)
		}
	}
	if err := pass.Update(flow(p.cookie, "10.9.9.9:999", "10.1.0.2:80"), uint64(now.Nano()), ebpf.UpdateAny); err != nil {
		t.Fatal(err)
	}
	v, err := p.Ask(Packet{From: netip.MustParseAddrPort("10.9.9.9:999"), To: netip.MustParseAddrPort("10.1.0.2:80"), Ifindex: 2})
	if err != nil || v.Drop || v.Socket != 0 {
		t.Errorf("%+v, %v", v, err)
	}
}

func TestWithoutEnrolmentOrListener(t *testing.T) {
	n, _ := open(t)
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

func TestPinsAreForRootAlone(t *testing.T) {
	n, o := open(t)
	ns, cookie := namespace(t)
	p, err := n.Pod(cookie, ns.Fd(), true)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	pins := 0
	err = filepath.WalkDir(o.PinDir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		want := fs.FileMode(0o600)
		if d.IsDir() {
			want = fs.ModeDir | 0o700
		} else {
			pins++
		}
		if stat := info.Sys().(*syscall.Stat_t); info.Mode() != want || stat.Uid != 0 || stat.Gid != 0 {
			t.Errorf("%s: %v of %d:%d, want %v", path, info.Mode(), stat.Uid, stat.Gid, want)
		}
		return nil
	})
	if err != nil || pins < 10 {
		t.Errorf("%d pins, %v", pins, err)
	}
}

func TestForeignPinsAreRefused(t *testing.T) {
	n, o := open(t)
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(o.PinDir, fmt.Sprintf("v%d", ABI))
	refused := func(what, want string) {
		t.Helper()
		again, err := Open(o)
		if err == nil {
			again.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", what, err)
		}
	}
	guard := filepath.Join(dir, "guard")
	if err := os.Chmod(guard, 0o666); err != nil {
		t.Fatal(err)
	}
	refused("a link that others may open", "only root may have access")
	if err := os.Chmod(guard, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, 1000, 0); err != nil {
		t.Fatal(err)
	}
	refused("a directory of another user", "belongs to user 1000")
	if err := os.Chown(dir, 0, 0); err != nil {
		t.Fatal(err)
	}
	events, probe := filepath.Join(dir, "events"), filepath.Join(dir, "probe")
	if err := os.Rename(probe, events); err != nil {
		t.Fatal(err)
	}
	refused("another program", "tag")
	if err := os.Remove(filepath.Join(dir, "enrolled")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, "generation"), filepath.Join(dir, "enrolled")); err != nil {
		t.Fatal(err)
	}
	refused("another map", "is not ours")
}

func TestPinsNeedABPFFileSystem(t *testing.T) {
	netlab.NewTest(t)
	_, err := Open(Options{PinDir: filepath.Join(t.TempDir(), "pins"), CgroupRoot: "/"})
	if err == nil || !strings.Contains(err.Error(), "not on a bpf file system") {
		t.Error(err)
	}
}

func TestReasonsMatchThePrograms(t *testing.T) {
	spec, err := loadRedirect()
	if err != nil {
		t.Fatal(err)
	}
	if got := int(spec.Maps[redirectMapCounters].MaxEntries); got != len(reasons()) {
		t.Errorf("redirect.c has %d reasons, reasons.go %d", got, len(reasons()))
	}
}

func TestALinkOnADeadCgroupIsReplaced(t *testing.T) {
	n, o := open(t)
	root := filepath.Join(o.CgroupRoot, "short-lived")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := n.AttachProbe(root); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(root); err != nil {
		t.Fatal(err)
	}
	if err := n.AttachProbe(o.CgroupRoot); err != nil {
		t.Fatal(err)
	}
	info, err := n.links[len(n.links)-1].Info()
	if err != nil || info.Cgroup().CgroupId == 0 {
		t.Errorf("%+v, %v", info, err)
	}
}

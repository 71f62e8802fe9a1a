// SPDX-License-Identifier: Apache-2.0

package sock

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/test/leak"
)

// descriptors is how many this process has.
func descriptors(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(all)
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

func (s *Stock) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.ready[0])
}

func TestAStockIsOfTheNamespace(t *testing.T) {
	leak.Check(t)
	f := own(t)
	var flagged int
	f.Own = func(int) error { flagged++; return nil } // one visit at a time
	l, err := f.ListenTCP(Listen{Addr: netip.MustParseAddrPort("127.0.0.1:7777")})
	must(t, err)
	defer l.Close()
	flagged = 0
	before := descriptors(t)
	stock := NewStock(*f)
	f.Stock = stock
	if _, err := f.DialNow(Dial{Dst: addrOf(l.Addr())}); !errors.Is(err, ErrLater) {
		t.Fatalf("an empty stock: %v", err)
	}
	eventually(t, "sockets are ready", func() bool { return stock.count() > 0 })
	d, err := f.DialNow(Dial{Dst: addrOf(l.Addr()), Src: netip.MustParseAddr("127.9.9.9"), Mark: 0x111})
	must(t, err)
	if !d.Done {
		t.Error("a connection within the machine is not made at once")
	}
	got, err := l.AcceptTCP()
	must(t, err)
	defer got.Close()
	if from := addrOf(got.RemoteAddr()).Addr().String(); from != "127.9.9.9" {
		t.Errorf("from %s", from)
	}
	if on, err := unix.GetsockoptInt(d.FD, unix.SOL_TCP, unix.TCP_NODELAY); on == 0 || err != nil {
		t.Errorf("TCP_NODELAY: %d, %v", on, err)
	}
	d.Close()
	c, err := f.DialTCP(context.Background(), Dial{Dst: addrOf(l.Addr())}) // takes from the stock, or does without
	must(t, err)
	c.Close()
	stock.Close()
	got.Close()
	if flagged < 2 {
		t.Errorf("%d sockets were flagged", flagged)
	}
	if now := descriptors(t); now > before {
		t.Errorf("%d descriptors before, %d after", before, now)
	}
	if _, err := f.DialNow(Dial{Dst: addrOf(l.Addr())}); !errors.Is(err, ErrLater) {
		t.Errorf("a closed stock: %v", err)
	}
}

func TestAStockGrowsWithItsUseAndIsGivenUp(t *testing.T) {
	leak.Check(t)
	f := own(t)
	stock := NewStock(*f)
	defer stock.Close()
	eventually(t, "a batch of the largest kind", func() bool {
		if fd := stock.take(unix.AF_INET); fd >= 0 {
			unix.Close(fd)
		}
		stock.mu.Lock()
		defer stock.mu.Unlock()
		return stock.batch == stockMost
	})
	stock.visits.Wait()
	stock.unused() // it was used
	if n := stock.count(); n == 0 || n > 2*stockMost {
		t.Errorf("%d are ready", n)
	}
	stock.unused() // it was not
	if n := stock.count(); n != 0 {
		t.Errorf("%d are kept", n)
	}
}

func TestDialNowSaysWhatDialTCPSays(t *testing.T) {
	leak.Check(t)
	f := &Factory{}
	l, err := f.ListenTCP(Listen{Addr: netip.MustParseAddrPort("127.0.0.1:0")})
	must(t, err)
	at := addrOf(l.Addr())
	must(t, l.Close())
	_, now := f.DialNow(Dial{Dst: at})
	_, later := f.DialTCP(context.Background(), Dial{Dst: at})
	if now == nil || later == nil || now.Error() != later.Error() || !errors.Is(now, unix.ECONNREFUSED) {
		t.Errorf("now %v, later %v", now, later)
	}
	if _, err := f.DialNow(Dial{Dst: netip.MustParseAddrPort("[fe80::1%lo]:1")}); !errors.Is(err, ErrLater) {
		t.Errorf("a zone: %v", err)
	}
	var timeout interface{ Timeout() bool }
	if late := (&Dialing{}).Late(); !errors.As(late, &timeout) || !timeout.Timeout() {
		t.Errorf("late: %v", late)
	}
}

func TestWhatIsAcceptedInherits(t *testing.T) {
	leak.Check(t)
	f := &Factory{}
	k := &Keepalive{Enabled: true, Time: 180 * time.Second, Interval: 170 * time.Second, Retries: 9, UserTimeout: true}
	l, err := f.ListenTCP(Listen{Addr: netip.MustParseAddrPort("127.0.0.1:0"), Inherit: k})
	must(t, err)
	defer l.Close()
	fd, err := DupFD(l)
	must(t, err)
	defer unix.Close(fd)
	if _, _, err := AcceptNow(fd); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("nobody has connected: %v", err)
	}
	c, err := f.DialTCP(context.Background(), Dial{Dst: addrOf(l.Addr())})
	must(t, err)
	defer c.Close()
	conn, peer, err := AcceptNow(fd)
	must(t, err)
	if want := addrOf(c.LocalAddr()); peer != want {
		t.Errorf("from %v, want %v", peer, want)
	}
	for i, o := range [][3]int{{unix.SOL_TCP, unix.TCP_NODELAY, 1}, {unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1}, {unix.SOL_TCP, unix.TCP_KEEPIDLE, 180},
		{unix.SOL_TCP, unix.TCP_KEEPINTVL, 170}, {unix.SOL_TCP, unix.TCP_KEEPCNT, 9}, {unix.SOL_TCP, unix.TCP_USER_TIMEOUT, (180 + 9*170) * 1000}} {
		if got, err := unix.GetsockoptInt(conn, o[0], o[1]); got != o[2] || err != nil {
			t.Errorf("option %d is %d, %v, want %d", i, got, err, o[2])
		}
	}
	handed, err := Hand(conn)
	must(t, err)
	must(t, handed.Close())
}

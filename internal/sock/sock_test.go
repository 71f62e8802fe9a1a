// SPDX-License-Identifier: Apache-2.0

package sock

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/internal/netns"
	"github.com/ztunnel-go/ztunnel/test/leak"
	"github.com/ztunnel-go/ztunnel/test/privileged"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func addrOf(a net.Addr) netip.AddrPort {
	switch a := a.(type) {
	case *net.TCPAddr:
		return netip.AddrPortFrom(a.AddrPort().Addr().Unmap(), a.AddrPort().Port())
	case *net.UDPAddr:
		return netip.AddrPortFrom(a.AddrPort().Addr().Unmap(), a.AddrPort().Port())
	}
	return netip.AddrPort{}
}

func TestConnectsAndFlagsFirst(t *testing.T) {
	leak.Check(t)
	flagged := 0
	f := &Factory{Own: func(fd int) error {
		if _, err := unix.Getpeername(fd); err == nil {
			t.Error("flagged after the connect")
		}
		flagged++
		return nil
	}}
	for _, loopback := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := f.ListenTCP(Listen{Addr: netip.MustParseAddrPort(loopback)})
		must(t, err)
		c, err := f.DialTCP(context.Background(), Dial{Dst: addrOf(l.Addr())})
		must(t, err)
		got, err := l.AcceptTCP()
		must(t, err)
		if addrOf(got.RemoteAddr()) != addrOf(c.LocalAddr()) {
			t.Errorf("%v is not %v", got.RemoteAddr(), c.LocalAddr())
		}
		c.Close()
		got.Close()
		l.Close()
	}
	if flagged != 4 {
		t.Errorf("flagged %d sockets, want 4", flagged)
	}
}

func TestAFlagThatFailsEndsTheDial(t *testing.T) {
	leak.Check(t)
	want := errors.New("no storage")
	f := &Factory{Own: func(int) error { return want }}
	if _, err := f.DialTCP(context.Background(), Dial{Dst: netip.MustParseAddrPort("127.0.0.1:1")}); !errors.Is(err, want) {
		t.Error(err)
	}
	if _, err := f.ListenTCP(Listen{Addr: netip.MustParseAddrPort("127.0.0.1:0")}); !errors.Is(err, want) {
		t.Error(err)
	}
}

func TestErrorsAreTheKernels(t *testing.T) {
	leak.Check(t)
	f := &Factory{}
	l, err := f.ListenTCP(Listen{Addr: netip.MustParseAddrPort("127.0.0.1:0")})
	must(t, err)
	gone := addrOf(l.Addr())
	l.Close()
	if _, err := f.DialTCP(context.Background(), Dial{Dst: gone}); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("closed port: %v", err)
	}
}

// full is a listener whose queue takes no more, so that connects hang.
func full(t *testing.T, f *Factory) netip.AddrPort {
	t.Helper()
	l, err := f.ListenTCP(Listen{Addr: netip.MustParseAddrPort("127.0.0.1:0"), Backlog: 1})
	must(t, err)
	t.Cleanup(func() { l.Close() })
	for {
		c, err := f.DialTCP(context.Background(), Dial{Dst: addrOf(l.Addr()), Timeout: 200 * time.Millisecond})
		if err != nil {
			return addrOf(l.Addr())
		}
		t.Cleanup(func() { c.Close() })
	}
}

func TestTimeoutsAndCancellationEndADial(t *testing.T) {
	leak.Check(t)
	f := &Factory{}
	to := full(t, f)
	_, err := f.DialTCP(context.Background(), Dial{Dst: to, Timeout: 20 * time.Millisecond})
	if !errors.Is(err, os.ErrDeadlineExceeded) || !os.IsTimeout(err) {
		t.Errorf("timeout: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	_, err = f.DialTCP(ctx, Dial{Dst: to})
	cancel()
	if !os.IsTimeout(err) {
		t.Errorf("deadline of the context: %v", err)
	}
	why := errors.New("drained")
	stopped, stop := context.WithCancelCause(context.Background())
	time.AfterFunc(20*time.Millisecond, func() { stop(why) })
	if _, err = f.DialTCP(stopped, Dial{Dst: to}); !errors.Is(err, why) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err = f.DialTCP(stopped, Dial{Dst: to}); !errors.Is(err, why) {
		t.Errorf("cancelled before: %v", err)
	}
}

func TestKeepaliveIsWhatWasAskedFor(t *testing.T) {
	leak.Check(t)
	l, err := (&Factory{}).ListenTCP(Listen{Addr: netip.MustParseAddrPort("127.0.0.1:0")})
	must(t, err)
	defer l.Close()
	k := Keepalive{Enabled: true, Time: 180 * time.Second, Interval: 170 * time.Second, Retries: 9, UserTimeout: true}
	for _, tt := range []struct {
		keepalive Keepalive
		option    [5]int
	}{
		{k, [5]int{1, 180, 170, 9, (180 + 9*170) * 1000}},
		{Keepalive{}, [5]int{0}},
	} {
		c, err := (&Factory{Keepalive: tt.keepalive}).DialTCP(context.Background(), Dial{Dst: addrOf(l.Addr())})
		must(t, err)
		must(t, Control(c, func(fd int) error {
			for i, o := range [][2]int{{unix.SOL_SOCKET, unix.SO_KEEPALIVE}, {unix.SOL_TCP, unix.TCP_KEEPIDLE},
				{unix.SOL_TCP, unix.TCP_KEEPINTVL}, {unix.SOL_TCP, unix.TCP_KEEPCNT}, {unix.SOL_TCP, unix.TCP_USER_TIMEOUT}} {
				got, err := unix.GetsockoptInt(fd, o[0], o[1])
				if err != nil || (got != tt.option[i] && (tt.keepalive.Enabled || i == 0)) {
					t.Errorf("option %v is %d, %v, want %d", o, got, err, tt.option[i])
				}
			}
			return nil
		}))
		c.Close()
	}
}

func TestCloseResetIsAReset(t *testing.T) {
	leak.Check(t)
	f := &Factory{}
	l, err := f.ListenTCP(Listen{Addr: netip.MustParseAddrPort("127.0.0.1:0")})
	must(t, err)
	defer l.Close()
	c, err := f.DialTCP(context.Background(), Dial{Dst: addrOf(l.Addr())})
	must(t, err)
	got, err := l.AcceptTCP()
	must(t, err)
	defer got.Close()
	must(t, CloseReset(c))
	if _, err := got.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Error(err)
	}
}

func TestNothingWasRedirected(t *testing.T) {
	leak.Check(t)
	f := &Factory{}
	l, err := f.ListenTCP(Listen{Addr: netip.MustParseAddrPort("127.0.0.1:0")})
	must(t, err)
	defer l.Close()
	c, err := f.DialTCP(context.Background(), Dial{Dst: addrOf(l.Addr())})
	must(t, err)
	defer c.Close()
	if dst, err := OriginalDst(c); err == nil {
		t.Errorf("original destination %v", dst)
	}
}

// own makes a namespace with lo up and its factory.
func own(t *testing.T) *Factory {
	t.Helper()
	privileged.Need(t)
	ns, err := netns.New()
	must(t, err)
	t.Cleanup(func() { ns.Close() })
	must(t, ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		ifr, err := unix.NewIfreq("lo")
		if err != nil {
			return err
		}
		ifr.SetUint16(unix.IFF_UP)
		return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
	}))
	return &Factory{NS: ns}
}

func TestSocketsAreOfTheNamespaceWithMarkAndSource(t *testing.T) {
	leak.Check(t)
	f := own(t)
	l, err := f.ListenTCP(Listen{Addr: netip.MustParseAddrPort("127.0.0.1:7777"), Mark: 0x539, Transparent: true})
	must(t, err)
	defer l.Close()
	if _, err := (&Factory{}).DialTCP(context.Background(), Dial{Dst: addrOf(l.Addr())}); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("reached from this namespace: %v", err)
	}
	c, err := f.DialTCP(context.Background(), Dial{Dst: addrOf(l.Addr()), Src: netip.MustParseAddr("127.9.9.9"), Mark: 0x111})
	must(t, err)
	defer c.Close()
	got, err := l.AcceptTCP()
	must(t, err)
	defer got.Close()
	if from := addrOf(got.RemoteAddr()).Addr().String(); from != "127.9.9.9" {
		t.Errorf("from %s", from)
	}
	must(t, Control(c, func(fd int) error {
		mark, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK)
		if mark != 0x111 {
			t.Errorf("mark %#x", mark)
		}
		return err
	}))
}

func TestPacketsTellWhereTheyWereGoing(t *testing.T) {
	leak.Check(t)
	f := own(t)
	for _, addr := range []string{"127.0.0.1:5353", "[::1]:5353"} {
		to := netip.MustParseAddrPort(addr)
		server, err := f.ListenUDP(Listen{Addr: to, RecvOrigDst: true, Transparent: true, V6Only: true})
		must(t, err)
		defer server.Close()
		c, err := f.DialUDP(context.Background(), Dial{Dst: to})
		must(t, err)
		defer c.Close()
		_, err = c.Write([]byte("q"))
		must(t, err)
		b, control := make([]byte, 10), make([]byte, 64)
		_, n, _, client, err := server.ReadMsgUDPAddrPort(b, control)
		must(t, err)
		dst, ok := PacketDst(control[:n])
		if !ok || dst != to {
			t.Errorf("sent to %v, read %v, %v", to, dst, ok)
		}
		for cut := range n { // no prefix may be misread
			if dst, ok := PacketDst(control[:cut]); ok && dst != to {
				t.Errorf("%d bytes of control data say %v", cut, dst)
			}
		}
		answer(t, f, c, netip.AddrPortFrom(client.Addr().Unmap(), client.Port()), to)
	}
}

// answer speaks to a connected client as the server it asked, whose port is
// taken.
func answer(t *testing.T, f *Factory, c *net.UDPConn, client, server netip.AddrPort) {
	t.Helper()
	s, err := f.Speak(server, 0)
	must(t, err)
	defer s.Close()
	n, err := s.WriteToUDPAddrPort([]byte("answer"), client)
	if n != 6 || err != nil {
		t.Errorf("wrote %d, %v", n, err)
	}
	c.SetDeadline(time.Now().Add(2 * time.Second))
	b := make([]byte, 20)
	n, err = c.Read(b)
	if string(b[:n]) != "answer" || err != nil {
		t.Errorf("read %q, %v", b[:n], err)
	}
}

func FuzzPacketDst(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 20, 0, 0, 0, 2, 0, 0, 53, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		if dst, ok := PacketDst(b); ok && !dst.IsValid() {
			t.Error("valid and not valid")
		}
	})
}

func TestWhatTheKernelKnowsOfAConnection(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	near, err := net.Dial("tcp", l.Addr().String())
	must(t, err)
	defer near.Close()
	far, err := l.Accept()
	must(t, err)
	defer far.Close()
	_, err = near.Write([]byte("x"))
	must(t, err)
	_, err = far.Read(make([]byte, 1))
	must(t, err)
	info, err := InfoOfConn(near.(*net.TCPConn))
	if err != nil || info.SRTT <= 0 || info.SRTT > time.Minute || info.MinRTT > info.SRTT {
		t.Errorf("%+v, %v", info, err)
	}
	must(t, near.Close())
	if _, err := InfoOfConn(near.(*net.TCPConn)); err == nil {
		t.Error("a closed socket is known")
	}
	if _, err := InfoOf(-1); err == nil {
		t.Error("no socket is known")
	}
}

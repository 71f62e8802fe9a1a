// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/test/leak"
)

// TestPlainNamesWhatIsTakenAndLeavesNothing binds two addresses, of which the
// second is somebody's.
func TestPlainNamesWhatIsTakenAndLeavesNothing(t *testing.T) {
	leak.Check(t)
	log := slog.New(slog.NewTextHandler(testWriter{t}, nil))
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer taken.Close()
	busy := taken.Addr().(*net.TCPAddr).AddrPort()
	free := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), busy.Port())

	_, err = Plain(PlainConfig{DNS: []netip.AddrPort{free, busy}}, PodInfo{}, log)
	if !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), "failed to bind to address "+busy.String()) {
		t.Fatalf("%v", err)
	}
	p, err := Plain(PlainConfig{DNS: []netip.AddrPort{free}}, PodInfo{}, log) // nothing of the first try is left
	must(t, err)
	if len(p.DNSPacketConns()) != 1 || len(p.DNSListeners()) != 1 || p.Tier() != TierPlain {
		t.Errorf("%d and %d, %v", len(p.DNSPacketConns()), len(p.DNSListeners()), p.Tier())
	}
	must(t, p.Enable(t.Context()))
	if err := errors.Join(p.Health(), p.Vacate(t.Context()), p.Release(), p.Release()); err != nil {
		t.Error(err)
	}
}

// TestPlainAddressesOfIPv6MayBeMissing, but none that was asked for by name.
func TestPlainAddressesOfIPv6MayBeMissing(t *testing.T) {
	leak.Check(t)
	_, err := Plain(PlainConfig{DNS: []netip.AddrPort{netip.MustParseAddrPort("[2001:db8::1]:15053")}}, PodInfo{},
		slog.New(slog.NewTextHandler(testWriter{t}, nil)))
	if !errors.Is(err, unix.EADDRNOTAVAIL) && !errors.Is(err, unix.EAFNOSUPPORT) {
		t.Errorf("%v", err)
	}
}

// SPDX-License-Identifier: Apache-2.0

package proxyproto

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"

	"github.com/ztunnel-go/ztunnel/internal/identity"
)

func id(t testing.TB, s string) identity.ID {
	t.Helper()
	i, err := identity.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

const hexSignature = "0d0a0d0a000d0a515549540a"

func TestHeaders(t *testing.T) {
	ap := netip.MustParseAddrPort
	for _, tc := range []struct {
		name string
		h    Header
		want string // hex after the signature
	}{
		{"IPv4 without an identity", Header{Source: ap("10.0.0.1:258"), Destination: ap("10.0.0.2:80")},
			"2111000c" + "0a000001" + "0a000002" + "0102" + "0050"},
		{"a mapped address is IPv4", Header{Source: ap("[::ffff:10.0.0.1]:258"), Destination: ap("10.0.0.2:80")},
			"2111000c" + "0a000001" + "0a000002" + "0102" + "0050"},
		{"IPv6", Header{Source: ap("[fd00::1]:1"), Destination: ap("[fd00::2]:2")},
			"21210024" + "fd000000000000000000000000000001" + "fd000000000000000000000000000002" + "0001" + "0002"},
		{"mixed families carry no address", Header{Source: ap("10.0.0.1:1"), Destination: ap("[fd00::2]:2")}, "21010000"},
		{"an identity follows the addresses",
			Header{Source: ap("10.0.0.1:1"), Destination: ap("10.0.0.2:2"), Identity: id(t, "spiffe://td/ns/a/sa/b")},
			"21110024" + "0a000001" + "0a000002" + "0001" + "0002" + "d0" + "0015" + hex.EncodeToString([]byte("spiffe://td/ns/a/sa/b"))},
		{"an identity alone", Header{Source: ap("10.0.0.1:1"), Destination: ap("[fd00::2]:2"), Identity: id(t, "spiffe://td/ns/a/sa/b")},
			"21010018" + "d0" + "0015" + hex.EncodeToString([]byte("spiffe://td/ns/a/sa/b"))},
	} {
		if got := hex.EncodeToString(tc.h.Append(nil)); got != hexSignature+tc.want {
			t.Errorf("%s:\n got %s\nwant %s", tc.name, got, hexSignature+tc.want)
		}
	}
}

func TestAnIdentityTooLongForTheHeaderIsNobody(t *testing.T) {
	h := Header{Source: netip.MustParseAddrPort("10.0.0.1:1"), Destination: netip.MustParseAddrPort("10.0.0.2:2")}
	want := h.Append(nil)
	h.Identity = id(t, "spiffe://td/ns/a/sa/"+strings.Repeat("b", 1<<16))
	if got := h.Append(nil); !bytes.Equal(got, want) {
		t.Errorf("%d bytes, want the %d of no identity", len(got), len(want))
	}
}

func TestAppendKeepsWhatWasThere(t *testing.T) {
	h := Header{Source: netip.MustParseAddrPort("10.0.0.1:1"), Destination: netip.MustParseAddrPort("10.0.0.2:2")}
	if got := h.Append([]byte("before")); !bytes.HasPrefix(got, []byte("before\r\n\r\n")) {
		t.Errorf("got %q", got)
	}
}

// FuzzAppend reads each header back by its layout alone.
func FuzzAppend(f *testing.F) {
	f.Add([]byte{10, 0, 0, 1}, []byte{10, 0, 0, 2}, uint16(1), uint16(2), "ns", "sa")
	f.Add(make([]byte, 16), []byte{1, 2, 3, 4}, uint16(0), uint16(65535), "", "")
	f.Fuzz(func(t *testing.T, src, dst []byte, sport, dport uint16, ns, sa string) {
		s, ok1 := netip.AddrFromSlice(src)
		d, ok2 := netip.AddrFromSlice(dst)
		if !ok1 || !ok2 || len(ns)+len(sa) > 60000 || strings.Contains(ns+sa, "/") {
			return
		}
		who, err := identity.New("td", ns, sa)
		if err != nil {
			t.Fatal(err)
		}
		b := Header{netip.AddrPortFrom(s, sport), netip.AddrPortFrom(d, dport), who}.Append(nil)
		if !bytes.HasPrefix(b, []byte(signature)) || b[12] != 0x21 {
			t.Fatalf("begins %x", b[:13])
		}
		rest := b[16:]
		if int(binary.BigEndian.Uint16(b[14:])) != len(rest) {
			t.Fatalf("length %d, there are %d bytes", binary.BigEndian.Uint16(b[14:]), len(rest))
		}
		switch b[13] {
		case 0x11:
			rest = rest[12:]
		case 0x21:
			rest = rest[36:]
		case 0x01:
		default:
			t.Fatalf("family %#x", b[13])
		}
		if rest[0] != 0xD0 || string(rest[3:]) != who.String() {
			t.Fatalf("identity %q, want %q", rest, who)
		}
	})
}
